import copy
import pickle

import pytest
import torch
from largest_tensor import LargestTensor
from torch import Tensor, nn

from projclust import ProjclustError, ProjectiveEmbedding, ProjectiveLMHead
from projclust.shapes import FactoredShape

N, D, K, J = 50, 12, 4, 3


@pytest.fixture(autouse=True)
def _no_graphs_of_earlier_tests() -> None:
    torch.compiler.reset()  # they count against the limit of recompilations


def filled(affine: bool = False, n_clusters: int = K, seed: int = 0, **options: object) -> ProjectiveEmbedding:
    """An embedding with random factors and random, unequal clusters (one of them empty when there are several)."""
    generator = torch.Generator().manual_seed(seed)
    embedding = ProjectiveEmbedding(FactoredShape(N, D, n_clusters, J, affine), **options)  # type: ignore[arg-type]
    labels = torch.randint(0, max(1, n_clusters - 1), (N,), generator=generator)
    embedding.set_factors(
        labels,
        torch.randn(N, J, generator=generator),
        torch.randn(n_clusters, J, D, generator=generator),
        torch.randn(n_clusters, D, generator=generator) if affine else None,
    )
    return embedding


def dense_twin(embedding: ProjectiveEmbedding, **options: object) -> nn.Embedding:
    return nn.Embedding.from_pretrained(embedding.dense_weight(), freeze=False, **options)


def token_ids(*shape: int) -> Tensor:
    return torch.randint(0, N, shape, generator=torch.Generator().manual_seed(7))


def test_rows_by_hand() -> None:
    embedding = ProjectiveEmbedding(FactoredShape(3, 2, 2, 1, affine=True))
    embedding.set_factors(
        torch.tensor([1, 0, 1]),
        torch.tensor([[2.0], [3.0], [-1.0]]),
        torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]),
        torch.tensor([[10.0, 0.0], [0.0, 20.0]]),
    )
    expected = [[0.0, 22.0], [13.0, 0.0], [0.0, 19.0]]
    assert embedding(torch.tensor([0, 1, 2])).tolist() == expected
    assert embedding.dense_weight().tolist() == expected
    # Stored cluster by cluster, in vocabulary order inside each.
    assert embedding.weight.flatten().tolist() == [3.0, 2.0, -1.0]
    assert embedding.clusters.tolist() == [1, 0, 1]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0,), (2, 0), ()])
def test_equals_the_dense_lookup(shape: tuple[int, ...], affine: bool, device: torch.device) -> None:
    embedding = filled(affine).to(device)
    ids = token_ids(*shape).to(device)
    assert torch.allclose(embedding(ids), dense_twin(embedding)(ids), atol=1e-6)
    assert embedding(ids).shape == (*shape, D)
    assert torch.equal(embedding(ids.int()), embedding(ids))


@pytest.mark.parametrize("n_clusters", [1, 300])
def test_one_cluster_and_more_than_a_byte_can_number(n_clusters: int) -> None:
    embedding = filled(n_clusters=n_clusters)
    assert embedding.clusters.dtype == (torch.uint8 if n_clusters == 1 else torch.int32)
    assert torch.allclose(embedding(torch.arange(N)), embedding.dense_weight(), atol=1e-6)


@pytest.mark.parametrize("bad", [-1, N])
def test_ids_outside_the_vocabulary_raise(bad: int) -> None:
    with pytest.raises(IndexError):
        filled()(torch.tensor([0, bad]))


@pytest.mark.parametrize("affine", [False, True])
def test_gradients_reach_every_factor_and_match_autograd_through_the_table(affine: bool, device: torch.device) -> None:
    embedding = filled(affine, dtype=torch.float64).to(device)
    ids = token_ids(6, 5).to(device)
    out_gradient = torch.randn(6, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
    embedding(ids).backward(out_gradient)
    ours = {
        name: parameter.grad.clone() for name, parameter in embedding.named_parameters() if parameter.grad is not None
    }
    embedding.zero_grad()
    # The same function, written with the dense table, which autograd can differentiate by itself.
    position = embedding.row_order().position
    labels = embedding.clusters.long()
    table = torch.einsum("nj,njd->nd", embedding.weight[position], embedding.bases[labels])
    if embedding.means is not None:
        table = table + embedding.means[labels]
    table[ids].backward(out_gradient)
    assert set(ours) == set(embedding.factor_names())
    for name, parameter in embedding.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(ours[name], parameter.grad), name


@pytest.mark.parametrize("affine", [False, True])
def test_padding_gives_no_gradient_to_any_factor(affine: bool) -> None:
    embedding = filled(affine, padding_idx=9)
    embedding(torch.tensor([[9, 9]])).sum().backward()
    for name, parameter in embedding.named_parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any(), name
    embedding(torch.tensor([[9, 3]])).sum().backward()
    with_padding = embedding.bases.grad.clone()  # type: ignore[union-attr]
    embedding.zero_grad()
    embedding(torch.tensor([[3]])).sum().backward()
    assert torch.equal(with_padding, embedding.bases.grad)  # type: ignore[arg-type]
    assert torch.equal(embedding(torch.tensor([9])), filled(affine)(torch.tensor([9])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precisions_and_scale(dtype: torch.dtype) -> None:
    embedding = filled(scale=10**0.5).to(dtype)
    out = embedding(token_ids(4, 4))
    assert out.dtype == dtype
    scale = torch.tensor(10**0.5, dtype=dtype)  # rounded first, as Gemma does
    assert torch.allclose(
        out, dense_twin(embedding)(token_ids(4, 4)) * scale, rtol=2e-2 if dtype != torch.float32 else 1e-5
    )
    # The scale is not in the table itself.
    assert torch.allclose(embedding.rows(token_ids(8)), embedding.dense_weight()[token_ids(8)], rtol=2e-2, atol=1e-2)


def test_autocast_keeps_the_weights_dtype() -> None:
    embedding = filled()
    with torch.autocast("cpu", torch.bfloat16):
        out = embedding(token_ids(4, 4))
        out.sum().backward()
    assert torch.equal(out, embedding(token_ids(4, 4)))  # autocast leaves nn.Embedding alone, too
    assert embedding.bases.grad is not None


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("n_clusters", [1, K, 60])
@pytest.mark.parametrize("tokens", [0, 1, 32, 333])
def test_the_static_path_of_compilers_agrees_in_value_and_gradient(tokens: int, n_clusters: int, affine: bool) -> None:
    embedding = filled(affine, n_clusters, padding_idx=9, scale=2.5, dtype=torch.float64)
    ids = token_ids(tokens)
    ids[2:4] = 9
    gradients = []
    for compiled in (False, True):
        embedding.zero_grad()
        forward = torch.compile(embedding, backend="aot_eager", fullgraph=True) if compiled else embedding
        out = forward(ids)
        out.square().sum().backward()
        gradients.append([out.detach(), *(parameter.grad.clone() for parameter in embedding.parameters())])  # type: ignore[union-attr]
    for eager, static in zip(*gradients, strict=True):
        assert torch.allclose(eager, static)


def test_the_static_path_has_room_when_all_tokens_share_a_cluster() -> None:
    embedding = filled()
    for cluster in range(K - 1):
        ids = (embedding.clusters == cluster).nonzero().squeeze(1)
        assert torch.allclose(embedding._decode_static(ids), embedding(ids), atol=1e-6)


@pytest.mark.parametrize("bad", [-1, N])
def test_a_compiled_lookup_refuses_ids_outside_the_vocabulary(bad: int) -> None:
    embedding = filled()
    embedding.row_order()
    with pytest.raises(IndexError):
        torch.compile(embedding, backend="aot_eager", fullgraph=True)(torch.tensor([0, bad]))


def test_exports_with_static_shapes_and_with_any_number_of_tokens() -> None:
    embedding = filled()
    program = torch.export.export(embedding, (token_ids(2, 5),))
    assert torch.allclose(program.module()(token_ids(2, 5)), embedding(token_ids(2, 5)), atol=1e-6)
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(embedding, (token_ids(2, 5),), dynamic_shapes=shapes)
    for shape in ((2, 3), (7, 40)):
        assert torch.allclose(program.module()(token_ids(*shape)), embedding(token_ids(*shape)), atol=1e-6)


@pytest.mark.parametrize("n_clusters", [1, K, 60])
def test_an_exported_lookup_takes_fewer_tokens_than_clusters(n_clusters: int) -> None:
    embedding = filled(n_clusters=n_clusters)
    program = torch.export.export(embedding, (token_ids(7),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for tokens in (1, 2, 3, 100):
        assert torch.allclose(program.module()(token_ids(tokens)), embedding(token_ids(tokens)), atol=1e-6)


def test_row_order_follows_loads_and_moves() -> None:
    embedding, other = filled(seed=0), filled(seed=1)
    before = embedding(torch.arange(N))
    embedding.load_state_dict(other.state_dict())
    assert torch.equal(embedding(torch.arange(N)), other(torch.arange(N)))
    assert not torch.equal(embedding(torch.arange(N)), before)
    for clone in (copy.deepcopy(other), pickle.loads(pickle.dumps(other)), copy.deepcopy(other).double().float()):
        assert torch.equal(clone(torch.arange(N)), other(torch.arange(N)))


def test_row_order_follows_changes_in_place_and_outlives_inference_mode() -> None:
    # A broadcast of buffers, as DDP makes at its start, changes the ids in place.
    embedding, other = filled(seed=0), filled(seed=1)
    embedding(torch.arange(N))
    with torch.no_grad():
        for name, tensor in embedding.state_dict().items():
            tensor.copy_(other.state_dict()[name])
    assert torch.equal(embedding(torch.arange(N)), other(torch.arange(N)))
    embedding.load_state_dict(filled(seed=0).state_dict())
    with torch.inference_mode():
        embedding(torch.arange(N))
    embedding(torch.arange(N)).sum().backward()
    # After a load, a compiled forward must not have to build the order.
    compiled = torch.compile(embedding, backend="aot_eager", fullgraph=True)
    embedding.load_state_dict(other.state_dict())
    assert torch.allclose(compiled(torch.arange(N)), other(torch.arange(N)), atol=1e-6)


def test_row_order_follows_changes_under_inference_mode() -> None:
    with torch.inference_mode():
        embedding, other = filled(seed=0), filled(seed=1)
        embedding.load_state_dict(other.state_dict())
        assert torch.equal(embedding(torch.arange(N)), other(torch.arange(N)))


def test_ids_of_no_cluster_are_refused() -> None:
    embedding = filled()
    with torch.no_grad():
        embedding.clusters[3] = K
    with pytest.raises(ProjclustError, match=r"outside 0 \.\. 3"):
        embedding(torch.arange(N))


def test_a_traced_lookup_is_right_for_other_tokens() -> None:
    embedding = filled()
    first = (embedding.clusters == 0).nonzero().squeeze(1)[:2]
    second = (embedding.clusters == 1).nonzero().squeeze(1)[:1]
    traced = torch.jit.trace(embedding, (torch.cat([first[:1], second]),))
    for ids in (first, token_ids(2), token_ids(30)):
        assert torch.allclose(traced(ids), embedding(ids), atol=1e-6)


def test_state_is_the_documented_one_and_requires_grad_can_be_set() -> None:
    embedding = filled(affine=True)
    assert set(embedding.state_dict()) == {"weight", "bases", "means", "clusters"}
    embedding.requires_grad_(False).requires_grad_(True)  # an integer parameter would raise
    assert embedding.clusters.dtype in (torch.uint8, torch.int32)


# (k, j): few clusters, and so many that a product with all bases would cost far more than the table's bytes.
@pytest.mark.parametrize(("k", "j"), [(8, 16), (64, 8)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_pass_makes_the_dense_table_or_gathers_a_basis_per_token(
    dtype: torch.dtype, unequal: bool, affine: bool, k: int, j: int
) -> None:
    n, d, tokens = 4000, 64, 200
    ranks = (j - 4, j + 4) * (k // 2) if unequal else None
    sizes = tuple(torch.bincount(torch.arange(n) % k).tolist()) if unequal else None
    shape = FactoredShape(n, d, k, j, affine, ranks, sizes)
    embedding = ProjectiveEmbedding(shape, dtype=dtype)
    head = ProjectiveLMHead(shape, bias=True, dtype=dtype, primary=embedding)
    for module in (embedding, head):
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    embedding.clusters.copy_(torch.arange(n) % k)
    embedding.row_order()
    ids = torch.arange(tokens)
    # The largest are the gradients of the factors, n x j and k x j x d, and the bases of the static path's blocks.
    factors = max(embedding.weight.numel(), embedding.bases.numel())
    allowed = max(factors, 2 * k * embedding.rank * d)
    assert allowed < min(n * d, tokens * j * d)
    with LargestTensor() as lookup:
        embedding(ids).sum().backward()
    assert lookup.largest == factors
    with LargestTensor() as static:
        embedding._decode_static(ids).sum().backward()
    assert static.largest <= allowed
    with LargestTensor() as output:
        head(torch.randn(2, d, dtype=dtype)).sum().backward()
    assert output.largest == factors


def test_a_training_step_with_both_makes_nothing_of_the_tables_size_but_logits() -> None:
    n, d, k, j, tokens = 1500, 300, 4, 16, 1000
    embedding = ProjectiveEmbedding(FactoredShape(n, d, k, j))
    head = ProjectiveLMHead(embedding.shape, bias=True, primary=embedding)
    head.weight, head.bases = embedding.weight, embedding.bases
    for parameter in {*embedding.parameters(), *head.parameters()}:
        nn.init.normal_(parameter, std=0.1)
    embedding.clusters.copy_(torch.arange(n) % k)
    optimizer = torch.optim.AdamW({*embedding.parameters(), *head.parameters()})
    ids = torch.arange(tokens)
    with LargestTensor() as step:
        step.ignored = (tokens, n)  # logits and their gradient
        nn.functional.cross_entropy(head(embedding(ids)), ids).backward()
        optimizer.step()
    assert step.largest < n * d


def test_a_tied_embedding_reads_the_primarys_clusters() -> None:
    primary = filled(affine=True)
    tied = ProjectiveEmbedding(primary.shape, primary=primary)
    tied.weight, tied.bases, tied.means = primary.weight, primary.bases, primary.means
    assert "clusters" not in tied.state_dict()
    assert "primary" not in dict(tied.named_modules())
    assert torch.equal(tied(token_ids(5)), primary(token_ids(5)))
