import pytest
import torch
from torch import nn

from projclust import ProjectiveEmbedding, ProjectiveLMHead
from projclust.shapes import FactoredShape

N, D, K, J = 50, 12, 4, 3


def tied_pair(affine: bool, bias: bool) -> tuple[ProjectiveEmbedding, ProjectiveLMHead]:
    generator = torch.Generator().manual_seed(0)
    embedding = ProjectiveEmbedding(FactoredShape(N, D, K, J, affine))
    embedding.set_factors(
        torch.randint(0, K - 1, (N,), generator=generator),  # the last cluster is empty
        torch.randn(N, J, generator=generator),
        torch.randn(K, J, D, generator=generator),
        torch.randn(K, D, generator=generator) if affine else None,
    )
    head = ProjectiveLMHead(embedding.shape, bias, primary=embedding)
    head.weight, head.bases = embedding.weight, embedding.bases
    if affine:
        head.means = embedding.means
    if head.bias is not None:
        nn.init.normal_(head.bias, generator=generator)
    return embedding, head


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 3, D), (0, D), (2, 0, D), (3, 200, D)])
def test_equals_the_dense_layer(shape: tuple[int, ...], affine: bool, bias: bool, device: torch.device) -> None:
    embedding, head = tied_pair(affine, bias)
    embedding, head = embedding.to(device), head.to(device)
    head.weight, head.bases, head.means = embedding.weight, embedding.bases, embedding.means
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    dense = torch.nn.functional.linear(hidden, embedding.dense_weight(), head.bias)
    assert torch.allclose(head(hidden), dense, atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(head(hidden), head(hidden.clone()))
        assert head(hidden).is_contiguous()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("positions", [6, 1100])  # one block, and three with the last one short
def test_gradients_match_autograd_through_the_table(positions: int, affine: bool) -> None:
    embedding, head = tied_pair(affine, bias=True)
    embedding.double()
    head.double()
    hidden = torch.randn(positions, D, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    weight = torch.randn(positions, N, generator=torch.Generator().manual_seed(2)).double()
    names = [*embedding.factor_names(), "bias"]
    inputs = [hidden, *(getattr(head, name) for name in names)]
    ours = torch.autograd.grad((head(hidden) * weight).sum(), inputs)
    labels = embedding.clusters.long()
    table = torch.einsum("nj,njd->nd", embedding.weight[embedding.row_order().position], embedding.bases[labels])
    if embedding.means is not None:
        table = table + embedding.means[labels]
    dense = torch.nn.functional.linear(hidden, table, head.bias)
    for name, one, other in zip(
        ["hidden", *names], ours, torch.autograd.grad((dense * weight).sum(), inputs), strict=True
    ):
        assert torch.allclose(one, other), name


@pytest.mark.parametrize("trained", ["hidden", "weight", "bases", "means", "bias"])
def test_one_factor_is_trained_while_the_others_are_frozen(trained: str) -> None:
    _, head = tied_pair(affine=True, bias=True)
    hidden = torch.randn(600, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
    inputs = {"hidden": hidden, **dict(head.named_parameters())}
    expected = torch.autograd.grad(head(hidden).square().sum(), list(inputs.values()))
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == trained)
    head(hidden).square().sum().backward()
    for (name, tensor), gradient in zip(inputs.items(), expected, strict=True):
        assert (tensor.grad is not None) == (name == trained)
        if tensor.grad is not None:
            assert torch.allclose(tensor.grad, gradient, rtol=1e-4, atol=1e-4)


def test_checkpointing_gives_the_same_gradients() -> None:
    _, head = tied_pair(affine=True, bias=True)
    hidden = torch.randn(7, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (plain,) = torch.autograd.grad(head(hidden).square().sum(), hidden)
    again = torch.utils.checkpoint.checkpoint(head, hidden, use_reentrant=False)
    assert torch.equal(plain, torch.autograd.grad(again.square().sum(), hidden)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_memory_held_before_never_shows(dtype: torch.dtype) -> None:
    _, head = tied_pair(affine=True, bias=True)
    head.to(dtype)
    hidden = torch.randn(300, D, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    torch.use_deterministic_algorithms(True)  # memory without values is filled with NaN
    try:
        logits = head(hidden)
        logits.float().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert logits.isfinite().all()
    for tensor in (hidden, *head.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_in_half_precision(autocast: bool, dtype: torch.dtype) -> None:
    _, head = tied_pair(affine=True, bias=True)
    hidden = torch.randn(2000, D, generator=torch.Generator().manual_seed(1))
    weight = torch.rand(2000, N, generator=torch.Generator().manual_seed(2))  # of one sign, so that the sums are large
    exact = torch.autograd.grad((head(hidden) * weight).sum(), list(head.parameters()))
    with torch.autocast("cpu", dtype, enabled=autocast):
        logits = head(hidden) if autocast else head.to(dtype)(hidden.to(dtype))
    assert logits.dtype == dtype
    (logits * weight).sum().backward()
    for parameter, gradient in zip(head.parameters(), exact, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - gradient).norm() < 1e-2 * gradient.norm()


def test_exports_with_any_number_of_positions() -> None:
    _, head = tied_pair(affine=True, bias=True)
    head.row_order()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(head, (torch.randn(4, D),), dynamic_shapes=shapes)
    for positions in (2, 900):
        hidden = torch.randn(positions, D, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(program.module()(hidden), head(hidden), atol=1e-5)


def test_compiles_to_one_graph_and_runs_in_half_precision() -> None:
    _, head = tied_pair(affine=True, bias=True)
    hidden = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
    head.row_order()
    assert torch.allclose(torch.compile(head, backend="aot_eager", fullgraph=True)(hidden), head(hidden), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(hidden).dtype == torch.bfloat16  # as nn.Linear
    assert head.to(torch.bfloat16)(hidden.bfloat16()).dtype == torch.bfloat16


def test_holds_no_cluster_ids_of_its_own() -> None:
    _, head = tied_pair(affine=True, bias=True)
    assert set(head.state_dict()) == {"weight", "bases", "means", "bias"}
