"""Compiled reading of coded tables against torch's, to a millionth of what is read, and where torch has to do it."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from coded_tables import MAKERS, ODD, embedding_of, gaussian
from largest_tensor import LargestTensor
from torch import Tensor, nn
from torch.autograd import forward_ad

from projclust.coding import kernels
from projclust.coding.codebooks import NONE
from projclust.coding.fit import CodedMatrix
from projclust.tables import CodedEmbedding, CodedLMHead, coded_head
from projclust.tables import coded as coded_tables_module

N, D = 300, ODD
# Float32 sums in another order; relative to the norm of all that is read.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def matrices() -> dict[str, CodedMatrix]:
    return {kind: make() for kind, make in MAKERS.items()}


@pytest.fixture(params=list(MAKERS))
def matrix(request: pytest.FixtureRequest, matrices: dict[str, CodedMatrix]) -> CodedMatrix:
    return matrices[request.param]


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor]], Tensor]:
    """Calls something while there are no compiled loops."""

    def call(work: Callable[[], Tensor]) -> Tensor:
        with monkeypatch.context() as patched:
            patched.setattr(coded_tables_module, "has_kernels", lambda: False)
            return work()

    return call


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was read by compiled loops."""
    seen: list[str] = []
    for module, name in ((coded_tables_module, "read_rows"), (coded_head, "read_logits")):
        own = getattr(module, name)

        def read(*inputs: Any, name: str = name, own: Any = own) -> Tensor:
            seen.append(name)
            return own(*inputs)

        monkeypatch.setattr(module, name, read)
    return seen


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads that torch uses; afterwards it is as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def ids_of(n: int, *shape: int) -> Tensor:
    return torch.randint(0, n, shape, generator=torch.Generator().manual_seed(7))


def head_of(embedding: CodedEmbedding, bias: bool = False) -> CodedLMHead:
    head = CodedLMHead(embedding.shape, bias, primary=embedding)
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return head


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found - expected).detach().norm()) <= TOLERANCE * float(expected.detach().norm())


def test_the_tables_are_those_that_their_names_say(matrices: dict[str, CodedMatrix]) -> None:
    assert 0 in matrices["some rows without codes"].row_bytes
    assert max(torch.bincount(matrices["long classes"].classes)) > 8192
    assert matrices["own decoders"].shape.decoders == 3
    bits = {kind: (matrix.shape.decoder_bits, matrix.shape.affine) for kind, matrix in matrices.items()}
    assert bits["int8"][1] is False
    assert {4, 8} == {number for number, _ in bits.values()}
    kinds = {int(k) for matrix in matrices.values() for k in embedding_of(matrix).side_tables().kinds.flatten()}
    assert {NONE, 1, 2, 3, 4, 5, 6, 7, 8} <= kinds


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (16,), (17,), (5, 200), (9000,)])
def test_a_lookup_reads_what_torch_reads(
    matrix: CodedMatrix, shape: tuple[int, ...], by_torch: Callable[[Callable[[], Tensor]], Tensor], reads: list[str]
) -> None:
    embedding, ids = embedding_of(matrix, padding_idx=3, scale=2.5), ids_of(matrix.shape.n, *shape)
    found = embedding(ids)
    assert reads == ["read_rows"]
    assert_close(found, by_torch(lambda: embedding(ids)))
    assert torch.equal(embedding(ids.int()), found)
    assert len(reads) == 2
    if ids.dim() == 2:
        assert torch.equal(embedding(ids.t()), found.transpose(0, 1))


@pytest.mark.parametrize("shape", [(D,), (1, D), (2, 2, D), (8, D)])
def test_a_head_reads_what_torch_reads(
    matrix: CodedMatrix, shape: tuple[int, ...], by_torch: Callable[[Callable[[], Tensor]], Tensor], reads: list[str]
) -> None:
    head, hidden = head_of(embedding_of(matrix), bias=True), gaussian(*shape, seed=3)
    found = head(hidden)
    assert reads == ["read_logits"]
    assert_close(found, by_torch(lambda: head(hidden)))
    strided = gaussian(*shape, 2, seed=4)[..., 0]
    assert_close(head(strided), by_torch(lambda: head(strided)))


@pytest.mark.parametrize(
    "kinds",
    [
        [3] * 21 + [4] * 11 + [5] * 9,
        [1] * 9 + [2] * 5 + [3] * 4,
        [9, 10, 11, 12],
        [8, 8],
        [7] * 3 + [8],
        [6, 6, 9],
        [1],
    ],
)
def test_all_kinds_of_codes(
    kinds: list[int], by_torch: Callable[[Callable[[], Tensor]], Tensor], matrices: dict[str, CodedMatrix]
) -> None:
    from projclust.coding.layout import class_layouts
    from projclust.coding.packing import pack_nibbles
    from projclust.shapes import CodedShape

    # One class ends with the bits that the next one begins with.
    rank, n, of_each = len(kinds), 4200, torch.tensor([kinds[:1] + [NONE] * (len(kinds) - 1), kinds])
    classes = torch.arange(n) % 2
    code_bytes = sum(n // 2 * layout.row_bytes for layout in class_layouts(of_each))
    sizes = {"rank": rank, "decoders": 1, "decoder_bits": 8, "coded": rank + 1, "code_bytes": code_bytes}
    shape = CodedShape(n, D, 2, affine=False, **sizes)
    generator = torch.Generator().manual_seed(1)
    stored = {
        name: torch.randint(0, 256, size, generator=generator).to(torch.uint8) for name, size in shape.stored.items()
    }
    stored |= {"kinds": pack_nibbles(of_each), "classes": pack_nibbles(classes)}
    for name in ("gains", "decoder_scales"):
        dtype = torch.bfloat16 if name == "gains" else torch.float16
        stored[name] = torch.ones(*shape.stored[name][:-1], 1, dtype=dtype).view(torch.uint8)
    embedding = CodedEmbedding(shape)
    embedding.set_stored(stored)
    head, hidden = head_of(embedding), gaussian(2, D)
    for ids in (ids_of(n, 9), torch.arange(n)):
        assert_close(embedding(ids), by_torch(lambda ids=ids: embedding(ids)))  # type: ignore[misc]
    assert_close(head(hidden), by_torch(lambda: head(hidden)))


@pytest.mark.parametrize("bad", [-1, N, 2**40, -(2**40)])
@pytest.mark.parametrize("count", [3, 400])
def test_ids_outside_raise(matrices: dict[str, CodedMatrix], bad: int, count: int) -> None:
    ids = ids_of(N, count)
    ids[-1] = bad
    with pytest.raises(IndexError, match="an id lies outside the vocabulary of 300"):
        embedding_of(matrices["auto"])(ids)


def test_results_do_not_depend_on_the_number_of_threads(
    matrices: dict[str, CodedMatrix], threads: Callable[[int], None]
) -> None:
    embedding = embedding_of(matrices["long classes"])
    head, ids, hidden = head_of(embedding), ids_of(20_000, 9000), gaussian(3, D)
    threads(1)
    rows, few, logits = embedding(ids), embedding(ids[:16]), head(hidden)
    for number in (2, 4):
        threads(number)
        assert_close(embedding(ids), rows)  # the product of many rows is torch's
        assert torch.equal(embedding(ids[:16]), few)
        assert torch.equal(head(hidden), logits)


def test_what_torch_has_to_do_is_left_to_it(matrices: dict[str, CodedMatrix], reads: list[str]) -> None:
    embedding, ids = embedding_of(matrices["auto"]), ids_of(N, 5)
    head, hidden = head_of(embedding), gaussian(2, D)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        embedding.to(dtype)
        head.to(dtype)
        assert embedding(ids).dtype == head(hidden.to(dtype)).dtype == dtype
    embedding.float()
    head.float()
    head(gaussian(9, D))  # a product is faster
    head(hidden[:0])
    head(hidden.requires_grad_()).sum().backward()
    assert hidden.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert head(hidden.detach()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        head(hidden.detach()[:, 1:])
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        head(forward_ad.make_dual(hidden.detach(), hidden.detach()))
    with LargestTensor():  # it sees every operation
        embedding(ids)
        head(hidden.detach())
    with pytest.raises((RuntimeError, IndexError)):
        embedding(ids.float())
    embedding.unfreeze()
    embedding(ids).sum().backward()
    head(hidden.detach()).sum().backward()
    assert reads == []
    embedding.freeze()
    with torch.no_grad():
        head(hidden)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert embedding(ids).dtype == torch.float32
    assert reads == ["read_logits", "read_rows"]


def test_the_bias_still_learns(matrices: dict[str, CodedMatrix], reads: list[str]) -> None:
    head = head_of(embedding_of(matrices["auto"]), bias=True)
    assert head.bias is not None
    head(gaussian(2, D)).sum().backward()
    assert head.bias.grad is not None
    assert torch.equal(head.bias.grad, torch.full((N,), 2.0))
    assert reads == ["read_logits"]


def test_defaults_of_torch_change_nothing(matrices: dict[str, CodedMatrix]) -> None:
    embedding = embedding_of(matrices["auto"])
    head, ids, hidden = head_of(embedding), ids_of(N, 40), gaussian(2, D)
    rows, logits = embedding(ids), head(hidden)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(embedding(ids), rows)
            assert torch.equal(head(hidden), logits)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["weight", "gains", "deviations", "decoder_scales", "means", "mean_scales", "decoder"])
def test_changes_in_place_are_followed(
    matrices: dict[str, CodedMatrix], name: str, by_torch: Callable[[Callable[[], Tensor]], Tensor]
) -> None:
    embedding = embedding_of(matrices["auto"])
    head, ids, hidden = head_of(embedding), ids_of(N, 40), gaussian(2, D)
    before = embedding(ids), embedding(ids[:3]), head(hidden)
    dict(embedding.named_buffers())[name].view(-1)[::2] ^= 1  # of floats the low byte
    for found, old, again in zip(
        (embedding(ids), embedding(ids[:3]), head(hidden)),
        before,
        (lambda: embedding(ids), lambda: embedding(ids[:3]), lambda: head(hidden)),
        strict=True,
    ):
        assert not torch.equal(found, old)
        assert_close(found, by_torch(again))


def test_what_is_loaded_under_inference_mode_is_read(matrices: dict[str, CodedMatrix]) -> None:
    auto = matrices["auto"]
    other = {name: tensor.clone() for name, tensor in auto.stored.items()}
    other["deviations"] ^= 8
    with torch.inference_mode():
        embedding, ids = embedding_of(auto), ids_of(N, 5)
        before = embedding(ids)
        embedding.load_state_dict(other)  # inference tensors have no version
        assert not torch.equal(embedding(ids), before)
        embedding.set_stored(auto.stored)
        assert torch.equal(embedding(ids), before)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_reads_its_own_bytes(matrices: dict[str, CodedMatrix], twin_of: Callable[[Any], Any]) -> None:
    embedding = embedding_of(matrices["auto"])
    pair = nn.ModuleList([embedding, head_of(embedding)])
    ids, hidden = ids_of(N, 5), gaussian(2, D)
    before = embedding(ids), pair[1](hidden)
    twin = twin_of(pair)
    assert twin[0]._known_reading is None  # nor does a saved model hold bytes twice
    twin[0].codes.zero_()
    assert not torch.equal(twin[0](ids), before[0])
    assert not torch.equal(twin[1](hidden), before[1])
    assert torch.equal(embedding(ids), before[0])
    assert torch.equal(pair[1](hidden), before[1])


def test_threads_share_all_blocks_and_pass_on_what_went_wrong(threads: Callable[[int], None]) -> None:
    for number in (1, 4):
        threads(number)
        blocks: list[tuple[int, int]] = []
        kernels.in_threads(lambda start, end: blocks.append((start, end)), 10, 3)  # noqa: B023
        assert sorted(blocks) == [(0, 3), (3, 6), (6, 9), (9, 10)]
        kernels.in_threads(lambda start, end: blocks.append((start, end)), 0, 3)  # noqa: B023
        assert len(blocks) == 4
        with pytest.raises(ZeroDivisionError):
            kernels.in_threads(lambda start, end: print(1 // 0), 10, 3)
