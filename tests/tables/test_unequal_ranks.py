"""Tables whose clusters have ranks of their own: what is stored, and every path against the dense table."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from projclust import ProjclustError, ProjectiveEmbedding, ProjectiveLMHead
from projclust.shapes import FactoredShape

D = 12
RANKS = (5, 1, 11, 3, 2)
SIZES = (17, 9, 4, 0, 20)  # one cluster is empty
N, K = sum(SIZES), len(SIZES)


@pytest.fixture(autouse=True)
def _no_graphs_of_earlier_tests() -> None:
    torch.compiler.reset()  # they count against the limit of recompilations


def uneven_shape(affine: bool = False) -> FactoredShape:
    return FactoredShape(N, D, K, max(RANKS), affine, RANKS, SIZES)


def filled(affine: bool = False, seed: int = 0, **options: object) -> ProjectiveEmbedding:
    """An embedding with random factors, the rows of its clusters scattered over the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    embedding = ProjectiveEmbedding(uneven_shape(affine), **options)  # type: ignore[arg-type]
    labels = torch.arange(K).repeat_interleave(torch.tensor(SIZES))[torch.randperm(N, generator=generator)]
    coefficients = torch.randn(N, max(RANKS), generator=generator)  # not zero where they do not count
    bases = torch.randn(K, max(RANKS), D, generator=generator)
    means = torch.randn(K, D, generator=generator) if affine else None
    embedding.set_factors(labels, coefficients, bases, means)
    return embedding


def tied_head(embedding: ProjectiveEmbedding, bias: bool) -> ProjectiveLMHead:
    head = ProjectiveLMHead(embedding.shape, bias, primary=embedding)
    head.weight, head.bases, head.means = embedding.weight, embedding.bases, embedding.means
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return head.to(embedding.weight.dtype)


def table_of(embedding: ProjectiveEmbedding) -> Tensor:
    """The table row by row, as autograd can differentiate by itself."""
    rows: dict[int, Tensor] = {}
    start = first_basis = 0
    for cluster, (size, rank) in enumerate(zip(SIZES, RANKS, strict=True)):
        coefficients = embedding.weight[start : start + size * rank].reshape(size, rank)
        basis = embedding.bases[first_basis : first_basis + rank]
        members = (embedding.clusters == cluster).nonzero().squeeze(1).tolist()
        for row, own in zip(members, coefficients, strict=True):
            rows[row] = own @ basis if embedding.means is None else own @ basis + embedding.means[cluster]
        start, first_basis = start + size * rank, first_basis + rank
    return torch.stack([rows[row] for row in range(N)])


def token_ids(*shape: int) -> Tensor:
    return torch.randint(0, N, shape, generator=torch.Generator().manual_seed(7))


def test_rows_by_hand() -> None:
    embedding = ProjectiveEmbedding(FactoredShape(3, 3, 2, 2, affine=True, ranks=(1, 2), sizes=(2, 1)))
    embedding.set_factors(
        torch.tensor([0, 1, 0]),
        torch.tensor([[2.0, 99.0], [3.0, 4.0], [-1.0, 99.0]]),
        torch.tensor([[[1.0, 0.0, 0.0], [99.0, 99.0, 99.0]], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]),
        torch.tensor([[10.0, 0.0, 0.0], [0.0, 20.0, 0.0]]),
    )
    # Cluster by cluster and nothing padded: two rows of rank 1, one of rank 2.
    assert embedding.weight.tolist() == [2.0, -1.0, 3.0, 4.0]
    assert embedding.bases.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    expected = [[12.0, 0.0, 0.0], [0.0, 23.0, 4.0], [9.0, 0.0, 0.0]]
    assert embedding(torch.tensor([0, 1, 2])).tolist() == expected
    assert embedding._decode_static(torch.tensor([0, 1, 2])).tolist() == expected
    assert embedding.dense_weight().tolist() == expected
    head = ProjectiveLMHead(embedding.shape, primary=embedding)
    head.weight, head.bases, head.means = embedding.weight, embedding.bases, embedding.means
    assert head(torch.tensor([1.0, 2.0, 3.0])).tolist() == [12.0, 58.0, 9.0]
    assert "j=1..2" in repr(embedding)
    assert "j=1..2" in repr(head)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (0,), (2, 0), (), (300,)])
def test_lookups_equal_the_dense_table(shape: tuple[int, ...], affine: bool) -> None:
    embedding = filled(affine)
    ids = token_ids(*shape)
    expected = nn.functional.embedding(ids, table_of(embedding))
    assert torch.allclose(embedding.dense_weight(), table_of(embedding), atol=1e-6)
    assert torch.allclose(embedding(ids), expected, atol=1e-5)
    assert torch.allclose(embedding._decode_static(ids.flatten()), expected.reshape(-1, D), atol=1e-5)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_gradients_of_lookups_match_autograd_through_the_table(static: bool, affine: bool) -> None:
    embedding = filled(affine, padding_idx=9, dtype=torch.float64)
    ids = token_ids(200)
    ids[3:5] = 9
    out_gradient = torch.randn(200, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    factors = list(embedding.parameters())
    ours = torch.autograd.grad(((embedding._decode_static if static else embedding)(ids) * out_gradient).sum(), factors)
    dense = nn.functional.embedding(ids[ids != 9], table_of(embedding))  # the padding gives no gradient
    for one, other in zip(ours, torch.autograd.grad((dense * out_gradient[ids != 9]).sum(), factors), strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("positions", [6, 600])  # one block, and three
def test_the_head_equals_the_dense_layer_in_value_and_gradient(positions: int, affine: bool, bias: bool) -> None:
    embedding = filled(affine, dtype=torch.float64)
    head = tied_head(embedding, bias)
    hidden = torch.randn(positions, D, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    weight = torch.randn(positions, N, generator=torch.Generator().manual_seed(2)).double()
    inputs = [hidden, *head.parameters()]
    ours, dense = head(hidden), nn.functional.linear(hidden, table_of(embedding), head.bias)
    assert torch.allclose(ours, dense)
    gradients = [torch.autograd.grad((logits * weight).sum(), inputs) for logits in (ours, dense)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("affine", [False, True])
def test_compiles_to_one_graph_in_value_and_gradient(affine: bool) -> None:
    embedding = filled(affine, padding_idx=9, scale=2.5, dtype=torch.float64)
    head = tied_head(embedding, bias=True)
    parameters = list({id(p): p for p in (*embedding.parameters(), *head.parameters())}.values())

    def logits(ids: Tensor) -> Tensor:
        out: Tensor = head(embedding(ids))
        return out

    for tokens in (0, 1, 77):
        ids = token_ids(tokens)
        ids[2:4] = 9
        out, compiled = logits(ids), torch.compile(logits, backend="aot_eager", fullgraph=True)(ids)
        assert torch.allclose(out, compiled)
        gradients = [torch.autograd.grad(result.square().sum(), parameters) for result in (out, compiled)]
        for eager, static in zip(*gradients, strict=True):
            assert torch.allclose(eager, static)


@pytest.mark.parametrize("bad", [-1, N])
def test_ids_outside_the_vocabulary_raise(bad: int) -> None:
    embedding = filled()
    for run in (embedding, torch.compile(embedding, backend="aot_eager", fullgraph=True)):
        with pytest.raises(IndexError):
            run(torch.tensor([0, bad]))


def test_exports_with_any_number_of_tokens_and_traces() -> None:
    embedding = filled(affine=True)
    model = nn.Sequential(embedding, tied_head(embedding, bias=True))
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (token_ids(5),), dynamic_shapes=shapes)
    traced = torch.jit.trace(model, (token_ids(5),))
    for tokens in (1, 2, 40):
        assert torch.allclose(program.module()(token_ids(tokens)), model(token_ids(tokens)), atol=1e-4)
        assert torch.allclose(traced(token_ids(tokens)), model(token_ids(tokens)), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    embedding = filled(affine=True, scale=3.0)
    head = tied_head(embedding, bias=True)
    ids, hidden = token_ids(40), torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    exact, exact_logits = embedding(ids), head(hidden)
    with torch.autocast("cpu", dtype):
        assert torch.equal(embedding(ids), exact)  # autocast leaves nn.Embedding alone, too
        assert head(hidden).dtype == dtype
    for ours, reference in (
        (embedding.to(dtype)(ids), exact),
        (embedding._decode_static(ids) * 3, exact),
        (head.to(dtype)(hidden.to(dtype)), exact_logits),
    ):
        assert ours.dtype == dtype
        assert (ours - reference).norm() < 2e-2 * reference.norm()
    embedding(ids).sum().backward()
    assert embedding.weight.grad is not None


def test_copies_loads_and_a_tied_embedding() -> None:
    embedding, other = filled(affine=True, seed=0), filled(affine=True, seed=1)
    ids = torch.arange(N)
    for clone in (copy.deepcopy(other), pickle.loads(pickle.dumps(other)), copy.deepcopy(other).double().float()):
        assert torch.equal(clone(ids), other(ids))
    embedding(ids)
    embedding.load_state_dict(other.state_dict())
    assert torch.equal(embedding(ids), other(ids))
    tied = ProjectiveEmbedding(other.shape, primary=other)
    tied.weight, tied.bases, tied.means = other.weight, other.bases, other.means
    assert set(tied.state_dict()) == {"weight", "bases", "means"}
    assert torch.equal(tied(ids), other(ids))


def test_ids_that_give_clusters_other_sizes_are_refused() -> None:
    embedding = filled()
    labels = embedding.clusters.long()
    with torch.no_grad():
        embedding.clusters[(labels == 0).nonzero()[0]] = 1
    for run in (embedding, tied_head(embedding, bias=False)):
        with pytest.raises(ProjclustError, match="the sizes of their coefficients"):
            run(torch.arange(D) if run is embedding else torch.randn(D))
    with pytest.raises(ProjclustError, match="the sizes of their coefficients"):
        embedding.set_factors(labels.flip(0) * 0, torch.randn(N, 11), torch.randn(K, 11, D), None)


@pytest.mark.parametrize(
    ("ranks", "sizes"),
    [
        (RANKS, None),
        (None, SIZES),
        (RANKS[1:], SIZES),
        (RANKS, SIZES[1:]),
        (RANKS, (18, *SIZES[1:])),
    ],
)
def test_ranks_and_sizes_belong_together(ranks: tuple[int, ...] | None, sizes: tuple[int, ...] | None) -> None:
    with pytest.raises(ProjclustError, match="one for each of 5 clusters"):
        ProjectiveEmbedding(FactoredShape(N, D, K, 3, ranks=ranks, sizes=sizes))


def test_equal_ranks_of_their_own_are_the_equal_ranks_laid_out_flat() -> None:
    equal = ProjectiveEmbedding(FactoredShape(6, 4, 2, 3))
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(6, 3, generator=generator), torch.randn(2, 3, 4, generator=generator)
    labels = torch.tensor([1, 0, 1, 1, 0, 1])
    flat = ProjectiveEmbedding(FactoredShape(6, 4, 2, 3, ranks=(3, 3), sizes=(2, 4)))
    for embedding in (equal, flat):
        embedding.set_factors(labels, *factors, None)
    assert torch.equal(flat.weight, equal.weight.flatten())
    assert torch.equal(flat.bases, equal.bases.flatten(0, 1))
    assert torch.equal(flat(torch.arange(6)), equal(torch.arange(6)))
