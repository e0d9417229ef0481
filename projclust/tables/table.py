"""What all compressed embedding tables have in common."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from projclust.shapes import CodedShape, FactoredShape

if TYPE_CHECKING:
    from typing_extensions import Self

Shape = TypeVar("Shape", bound=FactoredShape | CodedShape)


class CompressedTable(nn.Module, Generic[Shape]):
    """An embedding table that is not there: its rows, of this dtype, are made from something smaller.

    A table with a `primary` reads the stored tensors of that one; any other has its own. Rows of tokens that the
    vocabulary was given later are not compressed: they are the parameter `added`, (m, d), and follow the others.
    """

    added: nn.Parameter | None

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        primary: "CompressedTable[Shape] | None",
    ) -> None:
        super().__init__()
        self.shape = shape
        # A list, so that the primary does not become a submodule of its secondary.
        self._primary: list[Any] = [] if primary is None else [primary]
        self._index: tuple[Any, Any] | None = None
        self._allocate(dtype, device)
        own = shape.added > 0 and primary is None
        added = nn.Parameter(torch.empty(shape.added, shape.d, dtype=dtype, device=device)) if own else None
        self.register_parameter("added", added)

    def _allocate(self, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        """Make what is stored, without values."""
        raise NotImplementedError

    def to_dense(self, weight: nn.Parameter) -> nn.Module:
        """The stock module with this weight, (n, d), that takes the place of the compressed one."""
        raise NotImplementedError

    @property
    def primary(self) -> Any:
        """The table that holds what is stored: this one, or the one it is tied to."""
        return self._primary[0] if self._primary else self

    def decode(self, ids: Tensor) -> Tensor:
        """(N, d) the row of every token, by operations whose shapes do not depend on data."""
        raise NotImplementedError

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """(n, d) the table itself, of all rows. For export only: no forward pass builds it."""
        rows, added = self.compressed_rows(), self.primary.added
        return rows if added is None else torch.cat([rows, added.to(rows)])

    def compressed_rows(self) -> Tensor:
        """(n, d) the rows that are not there."""
        raise NotImplementedError

    def cut(self, n: int) -> None:
        """Keep the first n of the rows that are not there: nothing else of them changes."""
        raise NotImplementedError

    @torch.no_grad()
    def set_added(self, rows: Tensor) -> None:
        """Let these rows, (m, d), follow those that are not there, in place of any that did."""
        if len(rows) == 0:
            self.added = None
        elif self.added is None:
            self.added = nn.Parameter(rows.clone())
        else:
            self.added.data = rows.clone()  # the parameter itself stays: an optimizer may hold it
        self.shape = replace(self.shape, added=len(rows))

    def table_text(self) -> str:
        """What `extra_repr` says of the table."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Derive now where rows lie in what is stored, so that a compiled forward finds it."""
        self._derived()

    def _ids(self) -> list[Tensor]:
        """The stored tensors that say where rows lie."""
        raise NotImplementedError

    def _derive(self) -> Any:
        """Where rows lie, from the stored tensors of this table."""
        raise NotImplementedError

    def _derived(self) -> Any:
        """What `_derive` makes of the primary's tensors; made anew when those were changed or moved."""
        owner = self.primary
        # A compiler cannot look at the state of a tensor, nor derive this: it takes what is there.
        if owner._index is not None and (torch.compiler.is_compiling() or owner._index[0] == state_of(owner._ids())):
            return owner._index[1]
        # As ordinary tensors, also under inference_mode: training may come next.
        with torch.inference_mode(False), torch.no_grad():
            owner._index = state_of(owner._ids()), owner._derive()
        return owner._index[1]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def _apply(self, fn: Any, recurse: bool = True) -> "Self":
        super()._apply(fn, recurse)
        self._forget()
        return self

    def _forget(self) -> None:
        was_derived, self._index = self._index is not None, None
        # Now rather than on first use, so that a compiled forward finds it.
        if was_derived and not any(tensor.is_meta for tensor in self._ids()):
            self._derived()


def in_compiler() -> bool:
    """Whether operations are being recorded (torch.compile, torch.export, torch.jit.trace) and not just run."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is just numbers, of which nothing is recorded: what left torch would go unseen."""
    # The compiler first: it follows nothing else of this.
    return not in_compiler() and type(tensor) is Tensor and not is_in_torch_dispatch_mode()


def inverse_of(order: Tensor) -> Tensor:
    """(n,) the permutation that undoes another."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def state_of(tensors: list[Tensor]) -> list[Any]:
    """Changes whenever tensors change or move, but for changes in place of inference tensors, which have no version."""
    return [(t.data_ptr(), -1 if t.is_inference() else t._version, t.device) for t in tensors]
