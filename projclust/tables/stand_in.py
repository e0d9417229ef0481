"""What code that looks at the weight of a coded layer finds: all that a dense weight would tell, and no entries."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from projclust.errors import ProjclustError

# What tells of a tensor without its entries, or makes another of its kind. Properties are read by `__get__`.
_TOLD = {
    *("__get__", "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous", "is_floating_point"),
    *("is_inference", "is_same_size", "is_signed", "ndimension", "nelement", "numel", "size", "stride", "type_as"),
    *("data_ptr", "detach", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "result_type", "t"),
    *("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"),
}
# Properties that are tensors of entries.
_UNTOLD = ("imag", "real", "H", "mH")


class DenseWeight(Tensor):
    """The weight (n, d) that a coded layer would have if it were dense: its shape, dtype and device.

    It takes no memory. Whatever wants its entries fails by name, rather than to go on with the bytes of codes.
    """

    @staticmethod
    def of(n: int, d: int, dtype: torch.dtype, device: torch.device) -> "DenseWeight":
        """The weight of a layer of this dtype on this device."""
        with torch.inference_mode(False), torch.no_grad():
            return nan_table(n, d, dtype=dtype, device=device).as_subclass(DenseWeight)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, attribute, options = getattr(func, "__name__", ""), "", kwargs or {}
        if name in ("__get__", "__set__"):
            attribute = func.__self__.__name__  # type: ignore[attr-defined]
        with torch._C.DisableTorchFunctionSubclass():
            if name == "to":
                return _moved(*args, **options)
            if _changes_nothing(name, args, options):
                return args[0]
            if name in _TOLD and not (name == "__get__" and attribute in _UNTOLD):
                found = func(*args, **options)
                is_view = name in ("__get__", "detach", "t") and isinstance(found, Tensor)
                return found.as_subclass(cls) if is_view else found
        if "requires_grad" in (name.rstrip("_"), attribute):
            raise ProjclustError("an embedding that is stored as codes learns after `projclust.unfreeze(model)`")
        raise ProjclustError(
            f"{attribute or name} wants the entries of an embedding's weight, which is stored as codes: "
            "`dense_weight()` of its module makes them, and `dequantize()` of the model makes it dense"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DenseWeight(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device}, stored as codes)"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ProjclustError("the weight of an embedding that is stored as codes cannot be pickled: save its module")


def nan_table(n: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, d), all one entry, which is no number: whoever computes with it sees that."""
    return torch.full((1, 1), torch.nan, dtype=dtype, device=device).expand(n, d)


class Buffers(dict[str, Tensor | None]):
    """The buffers of a coded table. One that is set to a stand-in on some device goes there itself.

    That is how accelerate moves what it reads as an attribute of its module.
    """

    def __setitem__(self, name: str, value: Tensor | None) -> None:
        kept = self.get(name)
        super().__setitem__(
            name, kept.to(value.device) if isinstance(value, DenseWeight) and kept is not None else value
        )


def _moved(own: Tensor, *args: Any, **options: Any) -> Tensor:
    """What `to` gives, of a stand-in or as one of its arguments: a stand-in stays one."""
    moved = _stub(own).to(*map(_stub, args), **{name: _stub(value) for name, value in options.items()})
    if not isinstance(own, DenseWeight):
        return moved
    same = (moved.dtype, moved.device) == (own.dtype, own.device)
    n, d = own.shape
    return own if same else DenseWeight.of(n, d, dtype=moved.dtype, device=moved.device)


def _stub(part: Any) -> Any:
    """An ordinary tensor of the same dtype and device in place of a stand-in."""
    return torch.empty(0, dtype=part.dtype, device=part.device) if isinstance(part, DenseWeight) else part


def _changes_nothing(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether a call asks for what is so already."""
    if name == "requires_grad_":
        return not options.get("requires_grad", args[1] if len(args) > 1 else True)
    return name == "__set__" and (args[1] is None or args[1] is False)
