"""Budgets: sizes and ranks."""

from .sizes import compression_rate, parameter_count, rank_for_ratio

__all__ = ["compression_rate", "parameter_count", "rank_for_ratio"]
