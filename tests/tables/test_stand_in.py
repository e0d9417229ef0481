"""The weight of a coded layer tells what a dense one would, and has no entries to go on with."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tiny_models import BUILDERS, CODED, compressed_model, inputs_for, logits, tiny_model
from torch import Tensor, nn

from projclust import ProjclustError
from projclust.tables import CodedTable

TOLD: dict[str, Callable[[Tensor], Any]] = {
    "dtype": lambda weight: weight.dtype,
    "device": lambda weight: weight.device,
    "shape": lambda weight: tuple(weight.shape),
    "transposed": lambda weight: (tuple(weight.T.shape), tuple(weight.t().shape)),
    "size": lambda weight: (weight.size(), weight.size(0), weight.size(-1), len(weight)),
    "numel": lambda weight: (weight.numel(), weight.nelement(), weight.nbytes, weight.element_size(), weight.itemsize),
    "dim": lambda weight: (weight.dim(), weight.ndim),
    "kind": lambda weight: (
        weight.is_floating_point(),
        torch.is_floating_point(weight),
        weight.is_cuda,
        weight.is_meta,
    ),
    "eps": lambda weight: torch.finfo(weight.dtype).eps,
    "data": lambda weight: (weight.data.dtype, weight.detach().shape, weight.grad),
    "made from it": lambda weight: (weight.new_zeros(3).dtype, torch.zeros_like(weight).sum().item()),
    "cast to it": lambda weight: (
        torch.ones(2).to(weight).dtype,
        torch.ones(2).type_as(weight).dtype,
        torch.ones(2).to(dtype=weight.dtype, device=weight.device).dtype,
    ),
}


@pytest.mark.parametrize("how", CODED)
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_coded_layer_tells_what_its_dense_one_told(name: str, how: str) -> None:
    dense, model = dict(tiny_model(name).named_modules()), compressed_model(name, how)
    tables = {own: module for own, module in model.named_modules() if isinstance(module, CodedTable)}
    assert tables
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model.to(dtype)
        for own, module in tables.items():
            weight = dense[own].to(dtype).weight
            assert isinstance(weight, Tensor)
            for what, told in TOLD.items():
                assert told(module.weight) == told(weight), (own, what)
    # Tied layers have one weight, as before.
    assert len({id(module.weight) for module in tables.values()}) == 1


ENTRIES: dict[str, Callable[[Tensor], Any]] = {
    "product": lambda weight: F.linear(torch.ones(2, 16), weight),
    "transposed product": lambda weight: torch.ones(2, 16) @ weight.T,
    "lookup": lambda weight: F.embedding(torch.tensor([1]), weight),
    "row": lambda weight: weight[3],
    "mean": lambda weight: weight.mean(0),
    "mean of data": lambda weight: weight.data.mean(0),
    "cast": lambda weight: weight.half(),
    "list": lambda weight: weight.tolist(),
    "numpy": lambda weight: weight.numpy(),
    "filled": lambda weight: nn.init.normal_(weight),
    "set": lambda weight: weight.data.copy_(torch.zeros(120, 16)),
    "set row": lambda weight: weight.__setitem__(0, 1.0),
    "joined": lambda weight: torch.cat([weight, torch.zeros(8, 16)]),
    "copied": lambda weight: weight.clone(),
    "pickled": pickle.dumps,
}


@pytest.mark.parametrize("what", sorted(ENTRIES))
def test_what_wants_entries_is_told_where_they_are(what: str) -> None:
    model = compressed_model("gpt2", "int8")
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        with pytest.raises(ProjclustError, match="stored as codes"):
            ENTRIES[what](module.weight)


def test_a_weight_that_is_to_learn_names_unfreeze() -> None:
    weight = compressed_model("gpt2", "int8").get_input_embeddings().weight
    weight.requires_grad = False
    assert weight.requires_grad_(False) is weight
    for ask in (lambda: weight.requires_grad_(True), lambda: setattr(weight, "requires_grad", True)):
        with pytest.raises(ProjclustError, match="unfreeze"):
            ask()


def test_a_compiled_model_may_look_at_the_weight() -> None:
    model = compressed_model("gpt2", "int8")
    head = model.get_output_embeddings()

    def cast(hidden: Tensor) -> Tensor:
        found: Tensor = head(hidden.to(head.weight.dtype)) * head.weight.shape[0]
        return found

    hidden = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(torch.compile(cast, fullgraph=True, backend="eager")(hidden), cast(hidden), atol=1e-3)


def test_resizing_code_sees_the_vocabulary() -> None:
    # What training scripts ask before they resize.
    model = compressed_model("gpt2", "auto")
    assert model.get_input_embeddings().weight.shape[0] == 120
    assert model(**inputs_for("gpt2")).logits.shape[-1] == model.get_output_embeddings().weight.shape[0]


@pytest.mark.parametrize("how", CODED)
@pytest.mark.parametrize("place", ["offloaded", "dispatched", "hooked"])
def test_accelerate_moves_the_bytes(place: str, how: str) -> None:
    model = compressed_model("gpt2", how)
    expected = logits(model, "gpt2")
    stored = {name: value.clone() for name, value in model.get_input_embeddings().stored.items()}
    if place == "offloaded":
        cpu_offload(model, execution_device=torch.device("cpu"))
    elif place == "dispatched":
        dispatch_model(model, {"": "cpu"}, force_hooks=True)
    else:
        hook = AlignDevicesHook(execution_device="cpu", place_submodules=True)
        add_hook_to_module(model.get_input_embeddings(), hook)
    for _ in range(2):
        assert torch.equal(logits(model, "gpt2"), expected)
    after = model.get_input_embeddings().stored
    assert all(torch.equal(after[name], value) for name, value in stored.items())


def test_a_stand_in_moves_without_entries() -> None:
    weight = compressed_model("gpt2", "int8").get_input_embeddings().weight
    assert weight.to("cpu") is weight
    assert weight.to(torch.float32) is weight
    meta = weight.to("meta", torch.float16)
    assert (meta.shape, meta.dtype, meta.device.type) == (weight.shape, torch.float16, "meta")
    with pytest.raises(ProjclustError, match="sum wants the entries"):
        meta.sum()
