"""The compressed layers: torch only."""

from .embedding import ProjectiveEmbedding
from .factorized import FactorizedTable
from .lm_head import ProjectiveLMHead

__all__ = ["FactorizedTable", "ProjectiveEmbedding", "ProjectiveLMHead"]
