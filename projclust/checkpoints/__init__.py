"""Checkpoint folders: reading, writing, model cards, the Hub."""
