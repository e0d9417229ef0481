"""The compressed layers: torch only."""

from projclust.tables.coded import CodedEmbedding, CodedTable
from projclust.tables.coded_head import CodedLMHead
from projclust.tables.factored import FactorizedTable, ProjectiveEmbedding
from projclust.tables.factored_head import ProjectiveLMHead
from projclust.tables.table import CompressedTable

__all__ = [
    "CodedEmbedding",
    "CodedLMHead",
    "CodedTable",
    "CompressedTable",
    "FactorizedTable",
    "ProjectiveEmbedding",
    "ProjectiveLMHead",
]
