"""Projective clustering of the rows of a matrix: torch only, knows nothing of language models."""

from .estimator import Method, ProjectiveClustering
from .seeding import Init

__all__ = ["Init", "Method", "ProjectiveClustering"]
