"""Whole commands as functions: a checkpoint folder in, a folder or a report out."""
