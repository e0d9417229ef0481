"""How much each row of the table matters."""

from .counts import read_counts

__all__ = ["read_counts"]
