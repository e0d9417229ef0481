"""`ProjectiveLMHead`: the output layer tied to a `ProjectiveEmbedding`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .factorized import FactorizedTable


class ProjectiveLMHead(FactorizedTable):
    """Drop-in for the `nn.Linear` that a language model ties to its embedding.

    ``logits_c = (h V_c^T) U_c^T (+ h m_c)`` for the rows of each cluster, put back in vocabulary order, plus bias.
    Costs 2 (k j d + n j) operations for each position against 2 n d of the dense layer, and never builds the table.

    Args:
        in_features: d.
        out_features: n, the size of the vocabulary.
        n_clusters, rank, affine: as those of `primary`.
        bias: whether there is a bias of n entries.
        primary: the embedding whose factors this head shares by parameter tying.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_clusters: int,
        rank: int,
        affine: bool = False,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        primary: FactorizedTable | None = None,
    ) -> None:
        super().__init__(out_features, in_features, n_clusters, rank, affine, dtype, device, primary)
        self.in_features = in_features
        self.out_features = out_features
        unset = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device)) if bias else None
        self.register_parameter("bias", unset)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of shape ``hidden.shape[:-1] + (n,)``."""
        order = self.row_order()
        inner = F.linear(hidden, self.bases.flatten(0, 1)).unflatten(-1, (self.n_clusters, self.rank))
        parts = []
        for cluster, (coefficients, _, mean) in enumerate(self._by_cluster(self.weight, order.sizes)):
            part = F.linear(inner[..., cluster, :], coefficients)
            parts.append(part if mean is None else part + F.linear(hidden, mean.unsqueeze(0)))
        logits = torch.cat(parts, -1).index_select(-1, order.position.to(hidden.device))
        # Cast first, as nn.Linear does under autocast: the sum stays in the dtype of the products.
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, k={self.n_clusters}, j={self.rank}"
        return text + (", affine" if self.means is not None else "") + f", bias={self.bias is not None}"
