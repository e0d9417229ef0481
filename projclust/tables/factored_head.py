"""`ProjectiveLMHead`: the output layer tied to a `ProjectiveEmbedding`."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from projclust.shapes import FactoredShape
from projclust.tables.factored import FactorizedTable, RowOrder, by_cluster
from projclust.tables.head import TiedHead
from projclust.tables.table import in_compiler

# The positions of a block: fewer make matrix products slow, more make the buffer large for nothing.
_BLOCK = 256
# The elements that a row of the buffer is rounded up to: a cache line or more in every dtype.
_ALIGNMENT = 64


class ProjectiveLMHead(TiedHead[FactoredShape], FactorizedTable):
    """Drop-in for the `nn.Linear` that a language model ties to its embedding.

    ``logits_c = (h V_c^T) U_c^T (+ h m_c)`` for the rows of each cluster, put back in vocabulary order, plus bias.
    Costs 2 (k j d + n j) operations for each position against 2 n d of the dense layer, and never builds the table.
    Hidden states of shape (..., d) give logits of shape (..., n).

    Args:
        shape: that of `primary`.
        bias: whether there is a bias of n entries.
        dtype, device: those of the factors; torch's defaults.
        primary: the embedding whose factors this head shares by parameter tying.

    Example::

        head = ProjectiveLMHead(embedding.shape, bias=True, primary=embedding)
        head.weight, head.bases, head.means = embedding.weight, embedding.bases, embedding.means
        logits = head(hidden)  # (2, 7, 768) -> (2, 7, 30522)
    """

    def _logits(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        order = self.row_order().to(hidden.device)
        inner = F.linear(hidden, self.bases.flatten(0, -2))  # (..., k*j)
        shift = None if self.means is None else F.linear(hidden, self.means)  # (..., k)
        # Everything in the dtype of the products, as nn.Linear does under autocast.
        weight = self.weight.to(inner.dtype)
        bias = None if bias is None else bias.to(inner.dtype)
        if in_compiler():
            return _plain_logits(inner, shift, weight=weight, bias=bias, order=order, ranks=self.ranks)
        flat_inner = inner.reshape(-1, inner.shape[-1])
        flat_shift = None if shift is None else shift.reshape(-1, self.n_clusters)
        logits: Tensor = _BlockedLogits.apply(flat_inner, flat_shift, weight, bias, order, self.ranks)
        return logits.view(*hidden.shape[:-1], self.shape.n)


def _plain_logits(
    inner: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor | None, order: RowOrder, ranks: list[int]
) -> Tensor:
    """Logits by operations that a compiler can follow for any number of positions, and fuse."""
    parts = list(map(F.linear, inner.split(ranks, -1), by_cluster(weight, order.sizes, ranks)))
    if shift is not None:
        parts = [part + offset for part, offset in zip(parts, shift.split(1, -1), strict=True)]
    logits = torch.cat(parts, -1).index_select(-1, order.position)
    return logits if bias is None else logits + bias


class _BlockedLogits(torch.autograd.Function):
    """Logits (N, n), block by block: cluster by cluster into a buffer, then from there in vocabulary order.

    So nothing of the logits' size is made but the logits, in either direction. `inner` is (N, k*j), or (N, sum of j_c)
    of unequal ranks; `shift` is (N, k).
    """

    @staticmethod
    def forward(  # without setup_context, which makes every call longer: it shows where there is one position
        ctx: Any,
        inner: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        order: RowOrder,
        ranks: list[int],
    ) -> Tensor:
        ctx.sizes, ctx.ranks = order.sizes, ranks
        ctx.save_for_backward(inner, weight, order.rows)
        n, sizes = len(order.rows), order.sizes
        stored = by_cluster(weight, sizes, ranks)
        start = weight.new_zeros(n) if bias is None else bias.index_select(0, order.rows)
        starts = start.split(sizes)
        logits = inner.new_empty(len(inner), n)
        for block, grouped in _blocks(logits):
            codes = inner[block].split(ranks, 1)
            if shift is not None:
                starts = tuple(map(torch.add, start.split(sizes), shift[block].split(1, 1)))
            parts = grouped.split(sizes, 1)
            for code, coefficients, initial, part in zip(codes, stored, starts, parts, strict=True):
                torch.addmm(initial, code, coefficients.t(), out=part)
            torch.gather(grouped, 1, order.position.expand_as(grouped), out=logits[block])
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inner, weight, rows = ctx.saved_tensors
        wants_inner, wants_shift, wants_weight, wants_bias = ctx.needs_input_grad[:4]
        stored = by_cluster(weight, ctx.sizes, ctx.ranks)
        to_inner = torch.empty_like(inner)
        to_shift = inner.new_empty(len(inner), len(ctx.sizes))
        # Half precision would lose what many blocks add.
        to_weight = weight.new_zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32))
        to_stored = by_cluster(to_weight, ctx.sizes, ctx.ranks)
        for block, grouped in _blocks(gradient) if wants_inner or wants_shift or wants_weight else ():
            torch.gather(gradient[block], 1, rows.expand_as(grouped), out=grouped)
            parts = grouped.split(ctx.sizes, 1)
            if wants_inner:
                outs = to_inner[block].split(ctx.ranks, 1)
                for part, coefficients, out in zip(parts, stored, outs, strict=True):
                    torch.mm(part, coefficients, out=out)
            if wants_shift:
                to_shift[block] = torch.stack([part.sum(1) for part in parts], 1)
            if wants_weight:
                codes = inner[block].split(ctx.ranks, 1)
                for part, code, out in zip(parts, codes, to_stored, strict=True):
                    if out.dtype == part.dtype:
                        out.addmm_(part.t(), code)
                    else:
                        out.add_(part.t() @ code)
        return (
            to_inner if wants_inner else None,
            to_shift if wants_shift else None,
            to_weight.to(weight.dtype) if wants_weight else None,
            gradient.sum(0) if wants_bias else None,
            None,
            None,
        )


def _blocks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of positions, and room for the logits of each in one buffer that they share.

    Its rows start on cache lines: products into unaligned rows are much slower.
    """
    positions, n = logits.shape
    buffer = logits.new_empty(min(positions, _BLOCK), -(-n // _ALIGNMENT) * _ALIGNMENT)
    # oneDNN's bfloat16 products on AMX read a number beyond an odd count of them, times 0: it must not be NaN.
    buffer[:, n:] = 0
    for start in range(0, positions, _BLOCK):
        yield slice(start, start + _BLOCK), buffer[: positions - start, :n]
