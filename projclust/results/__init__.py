"""Rows of measurements and what they say together."""
