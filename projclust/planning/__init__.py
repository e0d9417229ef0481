"""Budgets of parameters and bytes."""

from .sizes import (
    bytes_for_bits,
    compression_rate,
    parameter_count,
    parse_size,
    rank_for_bytes,
    rank_for_ratio,
    stored_bytes,
)

__all__ = [
    "bytes_for_bits",
    "compression_rate",
    "parameter_count",
    "parse_size",
    "rank_for_bytes",
    "rank_for_ratio",
    "stored_bytes",
]
