"""Whether the kernels of `projclust.coding.gpu_kernels` are at hand, and what launching one needs."""

import importlib.util
import warnings
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from types import ModuleType


@cache
def has_gpu_kernels(device: torch.device) -> bool:
    """Whether Triton is there and compiles for a device: it needs a C compiler, which not every machine has."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        kernel = gpu_kernels().coordinates
        one = torch.ones(1, 1, dtype=torch.uint8, device=device)
        entry, found = torch.zeros(1, 1, dtype=torch.int32, device=device), torch.ones(1, 256, device=device)
        with device_of(one):
            sizes = {"ROWS": 16, "COORDINATES": 16}
            kernel[1, 1](one, 0, found, 1, 1, 1, entry, entry, entry, found.clone(), found.clone(), **sizes)
        torch.cuda.synchronize(device)
    except Exception as error:  # of Triton, of the compiler it calls, of a driver: torch does the same
        reason = str(error).strip().splitlines()
        warnings.warn(
            f"Triton compiles nothing here, so coded tables are read by torch, which takes longer on a GPU: "
            f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}",
            stacklevel=2,
        )
        return False
    return True


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """To launch a kernel in: Triton takes the current device, whatever the tensors'."""
    return torch.cuda.device_of(tensor)


@cache
def gpu_kernels() -> "ModuleType":
    """The kernels; imported only where they are needed, for Triton may be absent."""
    from projclust.coding import gpu_kernels

    return gpu_kernels
