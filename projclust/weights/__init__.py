"""How much each row of the table matters."""

from .counts import read_counts
from .importance import DEFAULT_EXPONENT, row_weights
from .text import text_frequencies
from .words import word_frequencies, word_weights

__all__ = [
    "DEFAULT_EXPONENT",
    "read_counts",
    "row_weights",
    "text_frequencies",
    "word_frequencies",
    "word_weights",
]
