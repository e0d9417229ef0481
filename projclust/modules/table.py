"""What all compressed embedding tables have in common."""

import torch
from torch import Tensor, nn


class CompressedTable(nn.Module):
    """An embedding table that is not there: its rows are made from something smaller."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        raise NotImplementedError

    @property
    def primary(self) -> "CompressedTable":
        """The table that holds what is stored: this one, or the one it is tied to."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Derive now what follows from what is stored, so that a compiled forward finds it.

        Raises:
            ProjclustError: what is stored contradicts itself.
        """
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """(n, d) the table itself. For export only: no forward pass builds it."""
        raise NotImplementedError
