import pytest
import torch
from torch import nn

from projclust import ProjectiveEmbedding, ProjectiveLMHead

N, D, K, J = 50, 12, 4, 3


def tied_pair(affine: bool, bias: bool) -> tuple[ProjectiveEmbedding, ProjectiveLMHead]:
    generator = torch.Generator().manual_seed(0)
    embedding = ProjectiveEmbedding(N, D, K, J, affine)
    embedding.set_factors(
        torch.randint(0, K - 1, (N,), generator=generator),  # the last cluster is empty
        torch.randn(N, J, generator=generator),
        torch.randn(K, J, D, generator=generator),
        torch.randn(K, D, generator=generator) if affine else None,
    )
    head = ProjectiveLMHead(D, N, K, J, affine, bias, primary=embedding)
    head.weight, head.bases = embedding.weight, embedding.bases
    if affine:
        head.means = embedding.means
    if head.bias is not None:
        nn.init.normal_(head.bias, generator=generator)
    return embedding, head


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 3, D)])
def test_equals_the_dense_layer(shape: tuple[int, ...], affine: bool, bias: bool) -> None:
    embedding, head = tied_pair(affine, bias)
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    dense = torch.nn.functional.linear(hidden, embedding.dense_weight(), head.bias)
    assert torch.allclose(head(hidden), dense, atol=1e-5)


@pytest.mark.parametrize("affine", [False, True])
def test_gradients_match_autograd_through_the_table(affine: bool) -> None:
    embedding, head = tied_pair(affine, bias=True)
    hidden = torch.randn(6, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(6, N, generator=torch.Generator().manual_seed(2))
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
        assert torch.allclose(one, other, atol=1e-4), name


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
