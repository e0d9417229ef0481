"""`CodedLMHead`: the output layer tied to a `CodedEmbedding`."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.autograd.function import once_differentiable

from projclust.coding import gpu_reading
from projclust.coding.codebooks import STATES
from projclust.coding.decode import entries
from projclust.coding.gpu import has_gpu_kernels
from projclust.coding.gpu_reading import GpuHeadRows, GpuReading, gpu_head_rows
from projclust.coding.layout import ClassLayout
from projclust.coding.portable import in_onnx_export, never, places, states
from projclust.coding.reading import HeadRows, coordinates_of, head_rows, read_logits
from projclust.coding.stored import decoder_of_each
from projclust.coding.trellis import has_kernels
from projclust.shapes import CodedShape
from projclust.tables.coded import BLOCK_ROWS, Addresses, CodedTable
from projclust.tables.head import TiedHead
from projclust.tables.table import in_compiler, inverse_of, is_plain

# The rows that are decoded at once on a GPU, where few large steps are faster.
_GPU_ROWS = 16384
# The positions whose logits are put in vocabulary order at once.
_BLOCK_POSITIONS = 256
# The rows of a block of an exported graph, to which each adds some twenty nodes.
_EXPORTED_ROWS = 8192
# Up to so many positions one pass over the codes is faster than decoding rows for a product.
_MOST_READ, _MOST_READ_GPU = 8, 128
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class CodedLMHead(TiedHead[CodedShape], CodedTable):
    """Drop-in for the `nn.Linear` that a language model ties to its embedding.

    ``logits_c = (h D^T) coordinates_c^T + h mean_c`` for the rows of each class, decoded in blocks, then put in
    vocabulary order, plus bias. The table is never there. Hidden states of shape (..., d) give logits of (..., n).

    Args:
        shape: that of `primary`.
        bias: whether there is a bias of n entries.
        dtype, device: those of the bias; torch's defaults.
        primary: the embedding whose table this head reads.

    Example::

        head = CodedLMHead(embedding.shape, bias=True, primary=embedding)
        logits = head(hidden)  # (2, 7, d) -> (2, 7, n)
    """

    _head_order: "_HeadOrder | None" = None
    _head_rows: tuple[Addresses, HeadRows | GpuHeadRows] | None = None

    def _logits(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        read = self._read(hidden)
        logits = self._made(hidden) if read is None else read
        if bias is not None:
            logits = logits + bias.to(logits.dtype)
        return logits.view(*hidden.shape[:-1], self.shape.n)

    def _read(self, hidden: Tensor) -> Tensor | None:
        """(P, n) logits without the bias in one pass over the codes; None where that is not possible or not faster."""
        d, device = self.in_features, hidden.device
        if not is_plain(hidden) or torch.is_autocast_enabled(device.type) or device != self.codes.device:
            return None
        if (torch.is_grad_enabled() and hidden.requires_grad) or unpack_dual(hidden).tangent is not None:
            return None
        reading = self.reading()
        on_gpu = isinstance(reading, GpuReading)
        most, dtypes = (_MOST_READ_GPU, _GPU_DTYPES) if on_gpu else (_MOST_READ, (torch.float32,))
        few = hidden.shape[-1:] == (d,) and 0 < hidden.numel() <= most * d
        if reading is None or not few or hidden.dtype not in dtypes:
            return None
        addresses = self.addresses()
        if self._head_rows is None or self._head_rows[0] is not addresses:
            rows = addresses.classes.long().argsort(stable=True)
            make = gpu_head_rows if on_gpu else head_rows
            self._head_rows = addresses, make(rows, addresses.rows, addresses.layouts)
        read: Any = gpu_reading.read_logits if on_gpu else read_logits
        return read(reading, hidden.detach().reshape(-1, d), self._head_rows[1], self.shape)

    def _made(self, hidden: Tensor) -> Tensor:
        """(P, n) logits without the bias, by operations of torch."""
        side, device = self.side_tables(), hidden.device
        inner = F.linear(hidden, side.decoders.flatten(0, 1).to(hidden))  # (..., G*r)
        if side.means is None:
            shift = inner.new_zeros(*hidden.shape[:-1], self.shape.classes)  # autocast made that of another dtype
        else:
            shift = F.linear(hidden, side.means.to(hidden))  # (..., C)
        flat_inner, flat_shift = inner.reshape(-1, inner.shape[-1]), shift.reshape(-1, shift.shape[-1])
        make = _plain_logits if in_compiler() else _CodedLogits.apply
        codes, order = self.codes.to(device), self._order(device)
        return make(flat_inner, flat_shift, side.deviations.to(device), codes, order)

    def _order(self, device: torch.device) -> "_HeadOrder":
        """Where the rows of the table lie among the logits, class by class."""
        addresses = self.addresses()
        known = self._head_order
        if known is not None and known.starts is addresses.starts and known.position.device == device:
            return known
        with torch.inference_mode(False), torch.no_grad():
            if in_onnx_export():  # ONNX has no stable sort, and nothing there asks for the inverse
                classes = self._portable_addresses()[1]
                rows = position = places(classes, [1] * self.shape.classes, addresses.rows)
            else:
                rows = addresses.classes.long().argsort(stable=True)
                position = inverse_of(rows)
            groups = decoder_of_each(self.shape.classes, self.shape.decoders)
            blocks, first_row, first_byte = [], 0, 0
            most = BLOCK_ROWS if device.type == "cpu" else _GPU_ROWS
            most = _EXPORTED_ROWS if in_onnx_export() else most
            for number, (count, layout) in enumerate(zip(addresses.rows, addresses.layouts, strict=True)):
                own = layout.to(device)
                inner = own.coded + groups[number] * self.shape.rank
                for start in range(0, count, most):
                    first, size = first_byte + start * layout.row_bytes, min(most, count - start)
                    blocks.append(_Block(number, first_row + start, size, first_byte=first, inner=inner, layout=own))
                first_row, first_byte = first_row + count, first_byte + count * layout.row_bytes
            values, starts = addresses.windows.values.to(device), addresses.starts
            order = _HeadOrder(position.to(device), rows.to(device), blocks=blocks, values=values, starts=starts)
            if not in_compiler():  # an exported program changes no module
                self._head_order = order
        return order


class _Block(NamedTuple):
    """Rows of one class that are decoded together."""

    number: int  # of the class
    first_row: int  # in the order of the classes
    rows: int  # how many there are
    first_byte: int  # where their codes begin
    inner: Tensor  # (m,) the coordinates with codes, among those of all decoders
    layout: ClassLayout

    def coordinates(self, codes: Tensor, values: Tensor, factors: Tensor, room: Tensor | None = None) -> Tensor:
        """(m, rows) float32 coordinates: in units of their deviations, times (m,) factors; see `coordinates_of`."""
        row_bytes = self.layout.row_bytes
        own = codes[self.first_byte : self.first_byte + self.rows * row_bytes]
        if is_plain(codes) and is_plain(factors):
            if has_gpu_kernels(codes.device):
                return gpu_reading.coordinates_of(own, self.rows, self.layout, values, factors)
            if codes.is_cpu and has_kernels():
                return coordinates_of(own, self.rows, self.layout, values, factors, room)
        return self._unit_coordinates(own.view(self.rows, row_bytes), values) * factors.unsqueeze(1)

    def _unit_coordinates(self, own: Tensor, values: Tensor) -> Tensor:
        # Bytes first: then whole rows are selected, many times faster on a CPU than entries of each row.
        if in_onnx_export():
            return entries(values, self._portable_states(own.t().int()) + self.layout.entry.unsqueeze(1))
        pairs = own.t().int() << 8  # (row_bytes, rows)
        pairs[:-1] |= own.t()[1:]
        places = pairs.index_select(0, self.layout.byte)
        places >>= self.layout.shift.unsqueeze(1)
        places &= STATES - 1
        places += self.layout.entry.unsqueeze(1)
        return entries(values, places)

    def _portable_states(self, own: Tensor) -> Tensor:
        """(m, rows) the states of the coordinates of rows whose bytes are (row_bytes, rows)."""
        following = torch.cat([own[1:], torch.zeros_like(own[:1])])
        byte, shift = self.layout.byte, self.layout.shift.unsqueeze(1)
        return states(own.index_select(0, byte), following.index_select(0, byte), shift)

    def deviations(self, deviations: Tensor) -> Tensor:
        """(m,) those of the coordinates with codes, of all, (C, r)."""
        return deviations[self.number, self.layout.coded]


class _HeadOrder(NamedTuple):
    """The rows of the table class by class."""

    position: Tensor  # (n,) vocabulary row i is row position[i] of the classes'
    rows: Tensor  # (n,) the inverse
    blocks: list[_Block]
    values: Tensor  # (tables * 256,) what codes are decoded by
    starts: Tensor  # those of the addresses that this was derived from


def _plain_logits(inner: Tensor, shift: Tensor, deviations: Tensor, codes: Tensor, order: _HeadOrder) -> Tensor:
    """Logits by operations that a compiler can follow."""
    if in_onnx_export():
        # Otherwise a runtime would decode the whole table while it loads the graph, and keep it.
        codes = codes.int() + never(inner)
    parts = []
    for block in order.blocks:
        if len(block.inner) == 0:
            parts.append(shift[:, block.number : block.number + 1].expand(-1, block.rows))
            continue
        coordinates = block.coordinates(codes, order.values, block.deviations(deviations)).to(inner.dtype)
        part = inner.index_select(1, block.inner) @ coordinates
        parts.append(part + shift[:, block.number : block.number + 1])
    return torch.cat(parts, 1).index_select(1, order.position)


class _CodedLogits(torch.autograd.Function):
    """Logits (N, n) of inner (N, G*r), shift (N, C): rows are decoded block by block, used and forgotten, both ways."""

    @staticmethod
    def forward(inner: Tensor, shift: Tensor, deviations: Tensor, codes: Tensor, order: _HeadOrder) -> Tensor:
        logits = inner.new_empty(len(inner), len(order.rows))
        largest = max(len(block.inner) * block.rows for block in order.blocks)
        room = deviations.new_empty(largest) if codes.is_cpu else None
        for block in order.blocks:
            coordinates = block.coordinates(codes, order.values, block.deviations(deviations), room=room)
            part = logits[:, block.first_row : block.first_row + block.rows]
            start = shift[:, block.number : block.number + 1]
            torch.addmm(start, inner.index_select(1, block.inner), coordinates.to(inner.dtype), out=part)
        if len(logits) <= _BLOCK_POSITIONS:
            return logits.index_select(1, order.position)
        for positions in logits.split(_BLOCK_POSITIONS):
            positions.copy_(positions.index_select(1, order.position))
        return logits

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        inner, _, deviations, codes, ctx.order = inputs
        ctx.save_for_backward(inner, deviations, codes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inner, deviations, codes = ctx.saved_tensors
        order: _HeadOrder = ctx.order
        wants_inner, wants_shift, wants_deviations = ctx.needs_input_grad[:3]
        # Sums over all blocks, of what may be in half precision.
        exact = torch.promote_types(inner.dtype, torch.float32)
        to_inner = torch.zeros_like(inner, dtype=exact)
        to_shift = to_inner.new_zeros(len(inner), len(deviations))
        to_deviations = torch.zeros_like(deviations)
        grouped = gradient.index_select(1, order.rows)
        for block in order.blocks:
            part = grouped[:, block.first_row : block.first_row + block.rows]
            own = block.deviations(deviations)
            unit = block.coordinates(codes, order.values, torch.ones_like(own))
            if wants_inner:
                to_inner.index_add_(1, block.inner, (part @ (unit * own.unsqueeze(1)).t().to(part.dtype)).to(exact))
            if wants_shift:
                to_shift[:, block.number] += part.sum(1, dtype=exact)
            if wants_deviations:
                found = inner.index_select(1, block.inner).t() @ part  # (m, rows)
                to_deviations[block.number].index_add_(0, block.layout.coded, (found.float() * unit).sum(1))
        # What is not wanted is not read either.
        return to_inner.to(inner.dtype), to_shift.to(inner.dtype), to_deviations, None, None
