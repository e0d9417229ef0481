"""What every compressed output layer does around its logits: sizes, the bias, and the stock layer it stands for."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projclust.tables.table import CompressedTable, Shape

if TYPE_CHECKING:
    from typing_extensions import Self


class TiedHead(CompressedTable[Shape]):
    """The output layer that a language model ties to its embedding, to be mixed in with a table."""

    bias: nn.Parameter | None

    def __init__(
        self,
        shape: Shape,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        primary: CompressedTable[Shape] | None = None,
    ) -> None:
        super().__init__(shape, dtype, device, primary)
        self.in_features, self.out_features = shape.d, shape.height
        unset = nn.Parameter(torch.empty(shape.height, dtype=dtype, device=device)) if bias else None
        self.register_parameter("bias", unset)

    @classmethod
    def from_dense(cls, old: nn.Linear, shape: Shape, primary: CompressedTable[Shape] | None = None) -> "Self":
        """The head, yet to be filled, that takes the place of `old`: with its device, dtype, mode and bias."""
        head = cls(shape, dtype=old.weight.dtype, device=old.weight.device, primary=primary)
        head.bias = old.bias  # the parameter itself: it may be tied elsewhere
        head.training = old.training
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of shape ``hidden.shape[:-1] + (n,)``."""
        added, n = self.primary.added, self.shape.n
        if added is None:
            return self._logits(hidden, self.bias)
        first, last = (None, None) if self.bias is None else (self.bias[:n], self.bias[n:])
        logits = self._logits(hidden, first)
        more = F.linear(hidden, added.to(hidden.dtype), None if last is None else last.to(hidden.dtype))
        return torch.cat([logits, more.to(logits.dtype)], -1)

    def _logits(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """Those of the n rows that are not there."""
        raise NotImplementedError

    def to_dense(self, weight: nn.Parameter) -> nn.Linear:
        """The `nn.Linear` with this weight, (n, d), and the bias itself."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device=torch.device("meta"))
        linear.weight = weight
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, {self.table_text()}, bias={self.bias is not None}"
