"""The body: the weights of a model beside its table, stored as integers of 8 or 4 bits and floats in memory.

A checkpoint holds packed rows under the weight's own name; while it is read they become the floats that they stand for,
in stock modules, so that everything a dense model can do goes on. Saving packs them again: with the scales that they
came with, as long as nobody has changed them, so to the same bytes.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from projclust.checkpoints.tensors import FLOATS, StoredTensor
from projclust.coding.integers import pack_rows, packed_row_bytes, scales_of, unpack_rows
from projclust.errors import CheckpointError, ProjclustError
from projclust.hf.private import is_converted
from projclust.options import Body, Codes
from projclust.tables import CompressedTable

# Smaller weights, such as a classifier of two classes, stay as they are.
_LEAST = 1024
# By how much of itself the largest number of a row may grow: by the rounding of its scale, and of codes of 4 bits.
_ROUNDING = 2**-6

Scales = dict[str, Tensor]
"""By the name of a weight the scales of its rows, (r, groups) bfloat16 on the CPU."""


@dataclass(frozen=True)
class BodyWeight:
    """A weight that is rounded.

    Attributes:
        weight: (r, ...); its rows are what follows the first dimension.
        codes: int8 or int4.
    """

    weight: nn.Parameter
    codes: Codes

    @property
    def columns(self) -> int:
        """Numbers of a row."""
        return self.weight[0].numel()

    @property
    def bytes_dense(self) -> int:
        """The bytes of the weight in memory."""
        return self.weight.numel() * self.weight.element_size()

    @property
    def bytes_stored(self) -> int:
        """The bytes of its packed rows."""
        return len(self.weight) * packed_row_bytes(self.columns, self.codes)

    def pack(self, rows: Tensor, scales: Tensor | None) -> Tensor:
        """The packed rows of what the weight holds, or is to hold, with known scales where they rebuild it exactly."""
        flat = rows.detach().flatten(1)
        if scales is not None and len(scales) != len(flat):  # the vocabulary was resized
            kept = min(len(scales), len(flat))
            return torch.cat([self.pack(rows[:kept], scales[:kept]), pack_rows(flat[kept:], self.codes)])
        if scales is not None:
            packed = pack_rows(flat, self.codes, scales)
            if torch.equal(unpack_rows(packed, self.columns, flat.dtype), flat):
                return packed
        return pack_rows(flat, self.codes)


@dataclass(frozen=True)
class RoundedBody:
    """What rounding did: bytes before and after, the relative squared error, and the scales by name."""

    codes: Body
    bytes_dense: int
    bytes_stored: int
    relative_error: float
    scales: Scales = field(repr=False)


def body_weights(model: PreTrainedModel, body: Body) -> dict[str, BodyWeight]:
    """Every weight, by name, that a body of these codes holds as integers; a shared one has several names.

    Those are matrices (and what convolutions have) named "weight", but the table, its output layer and what is tied to
    them, small ones, and those that transformers stores in another layout than it keeps them. With int4, embeddings and
    output layers have 8 bits: they are read one by one, and their errors reach the output as they are.
    """
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    table = getattr(embedding, "weight", None)
    converted = is_converted(model)
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is None or weight is table or isinstance(module, CompressedTable) or not weight.is_floating_point():
            continue
        name = f"{prefix}.weight"
        if weight.dim() < 2 or weight.numel() < _LEAST or converted(name):
            continue
        wide = module is output or isinstance(module, nn.Embedding) or weight[0].numel() == 1
        found[name] = BodyWeight(weight, Codes.INT8 if wide else Codes(body))
    return found


def check_body(model: PreTrainedModel, body: Body) -> dict[str, BodyWeight]:
    """The weights of a model's body, which are there and finite.

    Raises:
        ProjclustError: they are not.
    """
    found = body_weights(model, body)
    if not found:
        raise ProjclustError("the model has no weights beside its table that could be rounded: drop `body`")
    for name, own in found.items():
        largest, dtype = float(own.weight.detach().abs().max()), own.weight.dtype
        if not math.isfinite(largest):
            raise ProjclustError(f"{name} has NaN or infinite entries: it cannot be rounded")
        if largest > (1 - _ROUNDING) * torch.finfo(dtype).max:
            kind = str(dtype).removeprefix("torch.")
            raise ProjclustError(f"{name} has entries of {largest:.0f}, which rounding takes out of {kind}'s range")
    return found


def saved_bytes(model: PreTrainedModel, body: Body | None) -> int:
    """How many bytes fewer a checkpoint has whose body is stored so."""
    once = {} if body is None else {id(own.weight): own for own in body_weights(model, body).values()}
    return sum(own.bytes_dense - own.bytes_stored for own in once.values())


@torch.no_grad()
def round_body(model: PreTrainedModel, body: Body) -> RoundedBody:
    """Round a model's body in place to what its checkpoint will hold.

    Raises:
        ProjclustError: as `check_body`; the model is then unchanged.
    """
    lost = norm = 0.0
    dense = stored = 0
    scales: Scales = {}
    done: dict[int, Tensor] = {}
    for name, own in check_body(model, body).items():
        if id(own.weight) not in done:
            before = own.weight.detach().clone()
            done[id(own.weight)] = _round(own)
            difference = own.weight.double() - before.double()
            lost, norm = lost + float(difference.square().sum()), norm + float(before.double().square().sum())
            dense, stored = dense + own.bytes_dense, stored + own.bytes_stored
        scales[name] = done[id(own.weight)]
    error = lost / norm if norm > 0 else 0.0
    if not math.isfinite(error):
        raise ProjclustError("the model's weights leave the range of its dtype: convert it to float32 first")
    return RoundedBody(body, dense, stored, error, scales)


def _round(own: BodyWeight) -> Tensor:
    """Round one weight in place; returns its scales."""
    packed = own.pack(own.weight, None)
    own.weight.copy_(unpack_rows(packed, own.columns, own.weight.dtype).view_as(own.weight))
    return scales_of(packed, own.columns).cpu()


def round_again(model: PreTrainedModel) -> None:
    """Round a body that was trained to what its checkpoint would hold; other models stay as they are."""
    config = getattr(model.config, "quantization_config", None)
    if (body := getattr(config, "body", None)) is not None:
        model.hf_quantizer.body_scales = round_body(model, Body(body)).scales


def stored_body(model: PreTrainedModel, stored: dict[str, StoredTensor], body: Body) -> dict[str, BodyWeight]:
    """The weights of a model that a checkpoint holds packed, by its headers; the names of the base may differ.

    Raises:
        CheckpointError: one has another dtype or other rows than `body` says.
    """
    base, found = f"{model.base_model_prefix}.", {}
    for name, own in body_weights(model, body).items():
        for key in (name, base + name, name.removeprefix(base)):
            tensor = stored.get(key)
            if tensor is None or tensor.dtype in FLOATS:
                continue
            row = packed_row_bytes(own.columns, own.codes)
            if tensor.dtype != "U8" or tensor.shape[1:] != (row,):
                raise CheckpointError(
                    f"damaged checkpoint: {key} is {tensor.dtype} of shape {list(tensor.shape)}, but body {body} has "
                    f"rows of {row} bytes"
                )
            found[name] = own
            break
    return found


@contextmanager
def rounded(model: PreTrainedModel, body: Body | None) -> Iterator[None]:
    """The body rounded inside, and as it was afterwards."""
    weights = {} if body is None else {id(own.weight): own.weight for own in body_weights(model, body).values()}
    kept = {key: weight.detach().clone() for key, weight in weights.items()}
    try:
        if body is not None:
            round_body(model, body)
        yield
    finally:
        with torch.no_grad():
            for key, weight in weights.items():
                weight.copy_(kept[key])


def packed_state(
    model: PreTrainedModel, state: dict[str, Tensor] | None, body: Body, scales: Scales
) -> dict[str, Tensor]:
    """A state to save, by default the model's, whose body is packed.

    What is elsewhere, offloaded or a shard, stays a float: a checkpoint may hold both.

    Raises:
        ProjclustError: a weight has NaN or infinite entries.
    """
    state = dict(model.state_dict() if state is None else state)
    packed: dict[int, Tensor] = {}  # by parameter, so that tied ones stay one tensor
    was_changed = False
    for name, own in body_weights(model, body).items():
        tensor = state.get(name)
        if tensor is None or tensor.is_meta or hasattr(tensor, "full_tensor") or tensor.shape != own.weight.shape:
            continue
        if id(own.weight) not in packed:
            if not torch.isfinite(tensor).all():
                raise ProjclustError(f"{name} has NaN or infinite entries: set config.quantization_config.body to None")
            packed[id(own.weight)] = own.pack(tensor, scales.get(name))
            known = scales.get(name)
            was_changed |= known is not None and not torch.equal(
                scales_of(packed[id(own.weight)], own.columns).cpu(), known
            )
        state[name] = packed[id(own.weight)]
    if was_changed:
        warnings.warn(
            f"the weights beside the table were changed since they were rounded to {body}, and are rounded again; "
            "set config.quantization_config.body to None to save them as they are",
            stacklevel=4,
        )
    return state
