"""Coded tables: every path against the dense table, training of all but the codes, and what is stored."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from coded_tables import coded, embedding_of, falling_weights, gaussian, rebuilt, skewed_table
from largest_tensor import LargestTensor
from torch import Tensor, nn

from projclust import ProjclustError
from projclust.coding.fit import CodedMatrix, code_clusters, fit_coded
from projclust.tables import CodedEmbedding, CodedLMHead

N, D = 300, 12
KINDS_OF_TABLE = ["auto", "auto, own decoders", "int8", "int4, affine", "one class"]


@pytest.fixture(autouse=True)
def _no_graphs_of_earlier_tests() -> None:
    torch.compiler.reset()  # they count against the limit of recompilations


def made(kind: str) -> CodedMatrix:
    if kind == "auto":
        return coded()
    if kind == "auto, own decoders":
        return coded(classes=5, decoders=3)
    if kind == "one class":
        return coded(n=77, classes=1)
    table, labels = skewed_table(N, D), torch.arange(N) % 3
    bases = torch.linalg.qr(gaussian(4, D, 5, seed=1))[0].mT.contiguous()  # the last cluster is empty
    means = torch.zeros(4, D) if "affine" in kind else None
    if means is not None:
        means[:3] = torch.stack([table[labels == cluster].mean(0) for cluster in range(3)])
    return code_clusters(table, labels, bases=bases, means=means, ranks=[5, 2, 4, 3], codes=kind[:4])


@pytest.fixture(scope="module")
def matrices() -> dict[str, CodedMatrix]:
    return {kind: made(kind) for kind in KINDS_OF_TABLE}


@pytest.fixture(params=KINDS_OF_TABLE)
def matrix(request: pytest.FixtureRequest, matrices: dict[str, CodedMatrix]) -> CodedMatrix:
    return matrices[request.param]


@pytest.fixture
def auto(matrices: dict[str, CodedMatrix]) -> CodedMatrix:
    return matrices["auto"]


def head_of(embedding: CodedEmbedding, bias: bool = True) -> CodedLMHead:
    head = CodedLMHead(embedding.shape, bias, dtype=embedding.dtype, primary=embedding)
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return head


def token_ids(n: int, *shape: int) -> Tensor:
    return torch.randint(0, n, shape, generator=torch.Generator().manual_seed(7))


def trained(embedding: CodedEmbedding, steps: int = 5) -> None:
    """A few steps that change every parameter."""
    embedding.unfreeze()
    optimizer = torch.optim.Adam(embedding.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        target = gaussian(embedding.num_embeddings, embedding.embedding_dim, seed=step)
        (embedding(torch.arange(embedding.num_embeddings)) - target).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0,), (2, 0), ()])
def test_the_lookup_equals_that_of_the_dense_table(
    matrix: CodedMatrix, shape: tuple[int, ...], device: torch.device
) -> None:
    embedding = embedding_of(matrix).to(device)
    table, ids = rebuilt(matrix).to(device), token_ids(matrix.shape.n, *shape).to(device)
    assert torch.allclose(embedding(ids), table[ids], atol=1e-5)
    assert embedding(ids).shape == (*shape, D)
    assert torch.equal(embedding(ids.int()), embedding(ids))
    assert torch.allclose(embedding._decode_static(ids.flatten()).view(*shape, D), table[ids], atol=1e-5)
    assert torch.allclose(embedding.rows(ids.flatten()).view(*shape, D), table[ids], atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 3, D), (0, D), (2, 0, D), (3, 200, D)])
def test_the_head_equals_the_dense_layer(
    matrix: CodedMatrix, shape: tuple[int, ...], bias: bool, device: torch.device
) -> None:
    embedding = embedding_of(matrix).to(device)
    head, hidden, table = head_of(embedding, bias).to(device), gaussian(*shape, seed=3).to(device), rebuilt(matrix)
    assert torch.allclose(head(hidden), F.linear(hidden, table.to(device), head.bias), atol=1e-4)
    with torch.inference_mode():
        assert torch.allclose(head(hidden), F.linear(hidden, table.to(device), head.bias), atol=1e-4)
        assert head(hidden).is_contiguous()


def test_more_rows_than_are_decoded_at_once() -> None:
    table = skewed_table(5000, 6)
    embedding = embedding_of(fit_coded(table, 5000 * 4, falling_weights(5000), classes=2))
    hidden = gaussian(5, 6)
    dense = embedding(torch.arange(5000))
    assert torch.allclose(head_of(embedding, False)(hidden), hidden @ dense.T, atol=1e-4)
    assert torch.allclose(embedding.dense_weight(), dense, atol=1e-6)


@pytest.mark.parametrize("bad", [-1, N])
def test_ids_outside_the_vocabulary_raise(auto: CodedMatrix, bad: int) -> None:
    embedding = embedding_of(auto)
    with pytest.raises(IndexError):
        embedding(torch.tensor([0, bad]))
    with pytest.raises(IndexError):
        torch.compile(embedding, backend="aot_eager", fullgraph=True)(torch.tensor([0, bad]))


@pytest.mark.parametrize(("kind", "unfrozen"), [("auto, own decoders", False), ("int4, affine", True)])
def test_compiles_to_one_graph(matrices: dict[str, CodedMatrix], kind: str, unfrozen: bool) -> None:
    matrix = matrices[kind]
    embedding = embedding_of(matrix, padding_idx=9, scale=2.5)
    head, ids, hidden = head_of(embedding), token_ids(matrix.shape.n, 3, 7), gaussian(2, 5, D, seed=3)
    embedding.prepare()
    if unfrozen:
        embedding.unfreeze()
    lookup = torch.compile(embedding, backend="aot_eager", fullgraph=True)
    assert torch.allclose(lookup(ids), embedding(ids), atol=1e-5)
    assert torch.allclose(lookup(ids[:, :1]), embedding(ids[:, :1]), atol=1e-5)
    output = torch.compile(head, backend="aot_eager", fullgraph=True)
    assert torch.allclose(output(hidden), head(hidden), atol=1e-4)


def test_compiled_gradients_are_the_eager_ones(auto: CodedMatrix) -> None:
    embedding = embedding_of(auto)
    head, ids = head_of(embedding), token_ids(N, 40)
    embedding.unfreeze()
    head(embedding(ids)).square().mean().backward()
    eager = [parameter.grad.clone() for parameter in embedding.parameters() if parameter.grad is not None]
    embedding.zero_grad()
    lookup, output = (torch.compile(module, backend="aot_eager", fullgraph=True) for module in (embedding, head))
    output(lookup(ids)).square().mean().backward()
    assert len(eager) == 3
    for parameter, expected in zip(embedding.parameters(), eager, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_a_compiled_model_follows_loads(matrices: dict[str, CodedMatrix]) -> None:
    first = fit_coded(skewed_table(N, D), 1800, falling_weights(N), classes=4)
    # Another table of the same sizes: the same rows in another order, with their weights.
    turned = fit_coded(skewed_table(N, D).flip(0), 1800, falling_weights(N).flip(0), classes=4)
    assert first.shape == turned.shape
    embedding, other = embedding_of(first), embedding_of(turned)
    head, hidden = head_of(embedding, False), gaussian(4, D)
    lookup, output = (torch.compile(module, backend="aot_eager", fullgraph=True) for module in (embedding, head))
    head(hidden)
    lookup(torch.arange(N))
    output(hidden)
    embedding.load_state_dict(other.state_dict())
    # The compiled ones first: nothing has looked at what was loaded.
    assert torch.allclose(output(hidden), hidden @ other.dense_weight().T, atol=1e-4)
    assert torch.allclose(lookup(torch.arange(N)), other.dense_weight(), atol=1e-6)
    assert torch.allclose(embedding(torch.arange(N)), other.dense_weight(), atol=1e-6)
    assert torch.allclose(head(hidden), hidden @ other.dense_weight().T, atol=1e-4)


@pytest.mark.parametrize("kind", ["auto, own decoders", "one class"])
def test_exports_with_any_number_of_tokens_and_positions(matrices: dict[str, CodedMatrix], kind: str) -> None:
    matrix = matrices[kind]
    embedding = embedding_of(matrix)
    head = head_of(embedding)
    embedding.prepare()
    n, any_number = matrix.shape.n, {0: torch.export.Dim.DYNAMIC}
    lookup = torch.export.export(embedding, (token_ids(n, 7),), dynamic_shapes=(any_number,)).module()
    output = torch.export.export(head, (gaussian(4, D),), dynamic_shapes=(any_number,)).module()
    for count in (2, 3, 100):
        assert torch.allclose(lookup(token_ids(n, count)), embedding(token_ids(n, count)), atol=1e-5)
        assert torch.allclose(output(gaussian(count, D)), head(gaussian(count, D)), atol=1e-4)


def test_gradients_match_autograd_through_the_decoded_table(matrix: CodedMatrix) -> None:
    embedding = embedding_of(matrix)
    head, n = head_of(embedding), matrix.shape.n
    embedding.unfreeze()
    hidden = gaussian(30, D, seed=3).requires_grad_()
    weight = gaussian(30, n, seed=4)
    assert head.bias is not None
    inputs = [hidden, *embedding.parameters(), head.bias]
    assert len(inputs) == 4 + (matrix.shape.affine is True)
    ours = torch.autograd.grad((head(hidden) * weight).sum(), inputs)
    table = embedding.decode(torch.arange(n))  # a differentiable function of the parameters
    dense = torch.autograd.grad((F.linear(hidden, table, head.bias) * weight).sum(), inputs)
    for one, other in zip(ours, dense, strict=True):
        assert other.any()
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))
    # And the lookup's, against the formula itself.
    ids, out_gradient = token_ids(n, 6, 5), gaussian(6, 5, D, seed=5)
    parameters = list(embedding.parameters())
    ours = torch.autograd.grad(embedding(ids), parameters, out_gradient)
    side, addresses = embedding.side_tables(), embedding.addresses()
    unit = torch.stack([_unit_row(embedding, row) for row in range(n)])
    classes = addresses.classes.long()
    groups = classes * matrix.shape.decoders // matrix.shape.classes
    rows = torch.einsum("nr,nrd->nd", unit * side.deviations[classes], side.decoders[groups])
    if side.means is not None:
        rows = rows + side.means[classes]
    for one, other in zip(ours, torch.autograd.grad(rows[ids], parameters, out_gradient), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def _unit_row(embedding: CodedEmbedding, row: int) -> Tensor:
    """A row's coordinates in units of their deviations, bit by bit."""
    from coded_tables import bits_of, decode_bits

    addresses, unit = embedding.addresses(), torch.zeros(embedding.shape.rank)
    layout, start = addresses.layouts[int(addresses.classes[row])], int(addresses.starts[row])
    bits = bits_of(embedding.codes[start : start + layout.row_bytes])
    unit[layout.coded] = torch.tensor(decode_bits(bits, layout.kinds))
    return unit


@pytest.mark.parametrize("only", [0, 1, 2])
def test_one_part_is_trained_while_the_others_are_frozen(auto: CodedMatrix, only: int) -> None:
    embedding = embedding_of(auto)
    head = head_of(embedding)
    embedding.unfreeze()
    hidden = gaussian(30, D, seed=3)
    expected = torch.autograd.grad(head(hidden).square().mean(), list(embedding.parameters()))
    for number, parameter in enumerate(embedding.parameters()):
        nn.Module.requires_grad_(embedding, False) if number == 0 else None
        parameter.requires_grad_(number == only)
    head(hidden).square().mean().backward()
    for number, (parameter, gradient) in enumerate(zip(embedding.parameters(), expected, strict=True)):
        assert (parameter.grad is not None) == (number == only)
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_padding_gives_no_gradient(auto: CodedMatrix) -> None:
    embedding = embedding_of(auto, padding_idx=9)
    embedding.unfreeze()
    embedding(torch.tensor([[9, 9]])).sum().backward()
    assert not any(p.grad.any() for p in embedding.parameters() if p.grad is not None)
    embedding(torch.tensor([[9, 3]])).sum().backward()
    with_padding = [p.grad.clone() for p in embedding.parameters() if p.grad is not None]
    embedding.zero_grad()
    embedding(torch.tensor([[3]])).sum().backward()
    for parameter, gradient in zip(embedding.parameters(), with_padding, strict=True):
        assert gradient.any()
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
    # What is frozen is read by a compiled loop.
    assert torch.allclose(embedding(torch.tensor([9])), embedding_of(auto)(torch.tensor([9])), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions_change_no_byte(matrix: CodedMatrix, dtype: torch.dtype) -> None:
    embedding = embedding_of(matrix, scale=10**0.5)
    head, ids, hidden = head_of(embedding), token_ids(matrix.shape.n, 4, 4), gaussian(5, D)
    exact, logits = embedding(ids), head(hidden)
    table = embedding.dense_weight()
    embedding.to(dtype)
    head.to(dtype)
    assert embedding(ids).dtype == embedding.dtype == dtype
    assert embedding.dense_weight().dtype == dtype
    scale = torch.tensor(10**0.5, dtype=dtype)  # rounded first, as Gemma does
    assert torch.allclose(embedding(ids), table[ids].to(dtype) * scale, rtol=2e-2, atol=1e-5)
    assert torch.allclose(embedding(ids).float(), exact, rtol=2e-2, atol=2e-2)
    assert head(hidden.to(dtype)).dtype == dtype
    assert (head(hidden.to(dtype)).float() - logits).norm() < 0.02 * logits.norm()
    assert all(torch.equal(embedding.stored[name], matrix.stored[name]) for name in matrix.stored)
    embedding.float()
    assert torch.equal(embedding(ids), exact)


def test_gradients_in_half_precision(matrix: CodedMatrix) -> None:
    embedding = embedding_of(matrix)
    n = embedding.num_embeddings
    head, hidden, ids = head_of(embedding, False), gaussian(50, D, seed=1), token_ids(n, 50)
    embedding.unfreeze()
    weight = torch.rand(50, n, generator=torch.Generator().manual_seed(2))
    exact = torch.autograd.grad((head(hidden) * weight).sum(), list(embedding.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        out = head(hidden)
        assert out.dtype == torch.bfloat16  # as nn.Linear
        assert embedding(ids).dtype == torch.float32  # as nn.Embedding
        found = torch.autograd.grad((out * weight).sum(), list(embedding.parameters()))
    for one, other in zip(found, exact, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()


def test_sums_over_many_rows_in_half_precision_stay_exact() -> None:
    n = 60_000
    matrix = fit_coded(gaussian(n, 16), 3 * n)
    head, hidden, weight = head_of(embedding_of(matrix), False), gaussian(4, 16, seed=1), gaussian(4, n, seed=2)
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        given = hidden.to(dtype, copy=True).requires_grad_()
        (head.to(dtype)(given) * weight.to(dtype)).sum().backward()
        assert given.grad is not None
        found.append(given.grad.double())
    exact, half = found
    assert (exact - half).norm() < 0.006 * exact.norm()  # 0.012 where blocks of rows are summed in bfloat16


def test_only_what_is_unfrozen_learns_and_codes_never_do(auto: CodedMatrix) -> None:
    embedding = embedding_of(auto)
    assert embedding.is_frozen
    assert not list(embedding.parameters())
    assert not embedding(torch.tensor([1])).requires_grad
    assert embedding.requires_grad_(False).is_frozen
    embedding.requires_grad_(True)
    assert not embedding.is_frozen
    assert {name for name, _ in embedding.named_parameters()} == {
        "latent_deviations",
        "latent_means",
        "latent_decoders",
    }
    trained(embedding)
    for name in ("weight", "classes", "kinds"):
        assert torch.equal(dict(embedding.named_buffers())[name], auto.stored[name])
        assert torch.equal(embedding.stored[name], auto.stored[name])
    for name in ("deviations", "means", "decoder"):
        assert not torch.equal(embedding.stored[name], auto.stored[name])
    # A second call begins nothing anew.
    latent = embedding.latent_means
    embedding.unfreeze()
    assert embedding.latent_means is latent


def test_training_lowers_a_loss(auto: CodedMatrix) -> None:
    embedding, target = embedding_of(auto), gaussian(N, D, seed=8)

    def loss() -> Tensor:
        return (embedding(torch.arange(N)) - target).square().mean()

    before = loss().item()
    embedding.unfreeze()
    optimizer = torch.optim.Adam(embedding.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.9 * before
    assert sum(tensor.numel() for tensor in embedding.stored.values()) == auto.shape.bytes


def test_untrained_tables_are_saved_as_the_same_bytes(matrix: CodedMatrix) -> None:
    embedding = embedding_of(matrix)
    table = embedding.dense_weight()
    for state in (embedding.state_dict(), embedding.requires_grad_(True).state_dict()):
        assert set(state) == set(matrix.stored)
        assert all(torch.equal(state[name], matrix.stored[name]) for name in state)
    assert torch.equal(embedding.dense_weight(), table)
    embedding.freeze()
    assert embedding.is_frozen
    assert all(torch.equal(embedding.stored[name], matrix.stored[name]) for name in matrix.stored)
    assert torch.equal(embedding.dense_weight(), table)


def test_what_is_saved_is_what_forward_used(matrix: CodedMatrix) -> None:
    embedding = embedding_of(matrix)
    head, hidden = head_of(embedding), gaussian(6, D)
    untrained = embedding.dense_weight()
    trained(embedding)
    table, logits = embedding.dense_weight().detach(), head(hidden).detach()
    assert not torch.allclose(table, untrained, atol=0.01)
    other = CodedEmbedding(matrix.shape)
    other.load_state_dict(embedding.state_dict())
    assert torch.equal(other.dense_weight(), table)
    embedding.freeze()
    assert not list(embedding.parameters())
    assert torch.equal(embedding.dense_weight(), table)
    # What is frozen is read by a compiled loop.
    assert torch.allclose(head(hidden), logits, rtol=1e-5, atol=1e-5)


def test_loading_into_a_table_that_is_trained_refreshes_what_is_trained(auto: CodedMatrix) -> None:
    embedding, other = embedding_of(auto), embedding_of(auto)
    trained(other)
    embedding.unfreeze()
    parameters = list(embedding.parameters())
    parameters[0].requires_grad_(False)
    embedding.load_state_dict(other.state_dict())
    # The same ones: an optimizer may hold them.
    assert all(one is other for one, other in zip(parameters, embedding.parameters(), strict=True))
    assert [parameter.requires_grad for parameter in parameters] == [False, True, True]
    embedding.requires_grad_(True)
    assert not embedding.is_frozen
    assert torch.equal(embedding.dense_weight(), other.dense_weight())
    embedding(torch.arange(N)).sum().backward()
    assert all(parameter.grad is not None for parameter in embedding.parameters())


def test_what_became_no_number_is_not_saved(auto: CodedMatrix) -> None:
    embedding = embedding_of(auto)
    embedding.unfreeze()
    with torch.no_grad():
        embedding.latent_means[0, 0] = torch.nan  # type: ignore[index]
    for use in (embedding.state_dict, lambda: embedding.stored, embedding.freeze):
        with pytest.raises(ProjclustError, match="training has made the embedding NaN or infinite"):
            use()


def test_copies_and_pickles(matrix: CodedMatrix) -> None:
    embedding = embedding_of(matrix)
    pair = nn.ModuleList([embedding, head_of(embedding)])
    hidden, ids = gaussian(3, D), token_ids(matrix.shape.n, 9)
    for unfrozen in (False, True):
        if unfrozen:
            trained(embedding, steps=1)
        expected = embedding(ids), pair[1](hidden)
        for twin in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
            own, head = twin
            assert isinstance(own, CodedEmbedding)
            assert isinstance(head, CodedLMHead)
            assert head.primary is own
            assert own.is_frozen == (not unfrozen)
            assert torch.equal(own(ids), expected[0])
            assert torch.equal(head(hidden), expected[1])
            assert own.codes.data_ptr() != embedding.codes.data_ptr()


def test_addresses_follow_changes_in_place_moves_and_inference_mode(auto: CodedMatrix) -> None:
    turned = fit_coded(skewed_table(N, D).flip(0), 2250, falling_weights(N).flip(0), classes=4)
    assert turned.shape == auto.shape
    embedding, other = embedding_of(auto), embedding_of(turned)
    head, hidden = head_of(embedding, False), gaussian(3, D)
    embedding(torch.arange(N))
    head(hidden)
    with torch.no_grad():  # as a broadcast of buffers does
        for name, tensor in embedding.state_dict().items():
            tensor.copy_(other.state_dict()[name])
    assert torch.equal(embedding.dense_weight(), other.dense_weight())
    assert torch.allclose(head(hidden), hidden @ other.dense_weight().T, atol=1e-4)
    embedding = embedding_of(auto)
    with torch.inference_mode():
        embedding(torch.arange(N))
    embedding.unfreeze()
    embedding(torch.arange(N)).sum().backward()
    with torch.inference_mode():
        third = embedding_of(auto)
        third.load_state_dict(other.state_dict())
        assert torch.equal(third(torch.arange(N)), other(torch.arange(N)))


def test_one_bit_of_a_row_changes_that_row_only(matrix: CodedMatrix) -> None:
    n, ids = matrix.shape.n, torch.arange(matrix.shape.n)
    embedding = embedding_of(matrix)
    before, starts = embedding(ids), embedding.addresses().starts
    checked = 0
    for row in range(0, n, 37):
        length = matrix.row_bytes[int(matrix.classes[row])]
        for bit in range(0, 8 * length, 5):
            place = int(starts[row]) + bit // 8
            stored = {name: tensor.clone() for name, tensor in matrix.stored.items()}
            stored["weight"][place] ^= 1 << (7 - bit % 8)
            embedding.set_stored(stored)
            changed = (embedding(ids) != before).any(1).nonzero().squeeze(1).tolist()
            assert changed in ([row], [])  # the last bits of a row may fill up its bytes
            checked += changed == [row]
    assert checked > n // 37


def test_bytes_in_memory_are_those_of_the_file(matrix: CodedMatrix) -> None:
    embedding = embedding_of(matrix)
    head = head_of(embedding, bias=False)
    tensors = [*embedding.buffers(), *embedding.parameters(), *head.buffers(), *head.parameters()]
    assert sum(tensor.nbytes for tensor in tensors) == matrix.shape.bytes
    assert sum(tensor.nbytes for tensor in embedding.state_dict().values()) == matrix.shape.bytes
    assert not head.state_dict()
    assert {tensor.dtype for tensor in tensors if tensor.numel()} == {torch.uint8}


def test_a_tied_embedding_and_head_hold_nothing_and_follow_the_primary(auto: CodedMatrix) -> None:
    primary = embedding_of(auto)
    tied = CodedEmbedding(auto.shape, scale=2.0, primary=primary)
    head = head_of(primary, bias=False)
    ids = token_ids(N, 5)
    assert not tied.state_dict()
    assert not dict(tied.named_children())
    assert tied.weight is primary.weight is head.weight
    assert torch.equal(tied(ids), primary(ids) * 2)
    assert torch.equal(tied.dense_weight(), primary.dense_weight())
    tied.requires_grad_(True)  # a secondary has nothing to train
    assert primary.is_frozen
    trained(primary)
    assert not tied.is_frozen
    assert not tied.state_dict()
    assert not head.state_dict()
    assert torch.equal(tied(ids), primary(ids) * 2)
    assert not list(tied.parameters())
    (head(tied(ids))).sum().backward()
    assert primary.latent_decoders is not None
    assert primary.latent_decoders.grad is not None


def test_training_mode_warns_once_of_a_frozen_table(auto: CodedMatrix) -> None:
    embedding = embedding_of(auto).eval()
    head = head_of(embedding).eval()
    with pytest.warns(UserWarning, match="stays as it is in training; projclust.unfreeze") as caught:
        nn.ModuleList([embedding, head]).train()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedding.train()  # it is already
        embedding.eval()
        embedding.unfreeze()
        embedding.train()
    assert embedding.training


def test_bytes_that_contradict_each_other_are_refused(auto: CodedMatrix) -> None:
    for name, place, value in (("kinds", (0, 0), 0xFF), ("classes", (0,), 0xFF), ("classes", (0,), 0x33)):
        stored = {key: tensor.clone() for key, tensor in auto.stored.items()}
        stored[name][place] = value
        with pytest.raises(ProjclustError) as caught:
            embedding_of(CodedMatrix(auto.shape, stored, auto.classes, auto.ranks, auto.row_bytes)).prepare()
        assert "\n" not in str(caught.value)


def test_checkpointing_gives_the_same_gradients(auto: CodedMatrix) -> None:
    embedding = embedding_of(auto)
    head = head_of(embedding)
    hidden = gaussian(7, D).requires_grad_()
    (plain,) = torch.autograd.grad(head(hidden).square().sum(), hidden)
    again = torch.utils.checkpoint.checkpoint(head, hidden, use_reentrant=False)
    assert torch.equal(plain, torch.autograd.grad(again.square().sum(), hidden)[0])


@pytest.fixture(scope="module")
def large() -> CodedMatrix:
    table = gaussian(12000, 64) * torch.linspace(1, 0.1, 64)
    return fit_coded(table, 12000 * 64 // 8, falling_weights(12000), classes=8, decoders=4)


@pytest.mark.parametrize("unfrozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_pass_makes_the_dense_table(large: CodedMatrix, dtype: torch.dtype, unfrozen: bool) -> None:
    n, d, tokens = 12000, 64, 300
    embedding = embedding_of(large).to(dtype)
    head = head_of(embedding)
    if unfrozen:
        embedding.unfreeze()
    embedding.prepare()
    hidden = torch.randn(2, d, dtype=dtype).requires_grad_()
    head(hidden)
    ids = torch.arange(tokens)
    for passes in (
        lambda: embedding(ids),
        lambda: embedding._decode_static(ids),
        lambda: head(hidden),
    ):
        with LargestTensor() as seen:
            out = passes()
            if out.requires_grad:
                out.sum().backward()
        # What is larger than a block of decoded rows are the codes themselves, read in place.
        assert seen.largest <= max(2048 * d, 2 * n, len(embedding.codes))
        assert seen.largest < n * d / 3


def test_sizes_are_shown(auto: CodedMatrix) -> None:
    embedding = embedding_of(auto, padding_idx=3)
    bits: Any = 8 * auto.shape.bytes / (N * D)
    assert f"300, 12, 4 classes, rank {auto.shape.rank}, {bits:.3f} bits per weight, padding_idx=3" in repr(embedding)
    assert "in_features=12, out_features=300, 4 classes" in repr(head_of(embedding))
