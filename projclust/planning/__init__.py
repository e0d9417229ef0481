"""Budgets of parameters and bytes."""

from .sizes import compression_rate, parameter_count, parse_size, rank_for_bytes, rank_for_ratio, stored_bytes

__all__ = ["compression_rate", "parameter_count", "parse_size", "rank_for_bytes", "rank_for_ratio", "stored_bytes"]
