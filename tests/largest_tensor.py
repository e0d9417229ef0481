"""How large a tensor a computation makes."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.ignored: tuple[int, ...] | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.shape != self.ignored:
                self.largest = max(self.largest, tensor.numel())
        return out
