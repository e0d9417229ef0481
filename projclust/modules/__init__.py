"""The compressed layers: torch only."""

from .coded import CodedEmbedding, CodedLMHead, CodedTable
from .embedding import ProjectiveEmbedding
from .factorized import FactorizedTable
from .lm_head import ProjectiveLMHead
from .table import CompressedTable

__all__ = [
    "CodedEmbedding",
    "CodedLMHead",
    "CodedTable",
    "CompressedTable",
    "FactorizedTable",
    "ProjectiveEmbedding",
    "ProjectiveLMHead",
]
