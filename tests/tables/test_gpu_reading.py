"""Kernels for a GPU against torch, to a millionth of what is read; on a CPU Triton interprets them."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coded_tables import MAKERS, ODD, embedding_of, gaussian
from torch import Tensor

from projclust.coding import gpu, gpu_reading
from projclust.coding.fit import CodedMatrix
from projclust.tables import CodedEmbedding, CodedLMHead, coded_head
from projclust.tables import coded as coded_tables_module

pytest.importorskip("triton")

# Float32 sums in another order; relative to the norm of all that is read.
TOLERANCE = 1e-6
SMALL = [kind for kind in MAKERS if kind != "long classes"]  # whose rows are too many for an interpreter


@pytest.fixture(scope="module")
def matrices() -> dict[str, CodedMatrix]:
    return {kind: MAKERS[kind]() for kind in SMALL}


@pytest.fixture(params=SMALL)
def matrix(request: pytest.FixtureRequest, matrices: dict[str, CodedMatrix]) -> CodedMatrix:
    return matrices[request.param]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels are used, on whatever device; the names of those that were."""
    seen: list[str] = []
    own = gpu.gpu_kernels()

    class Seen:
        def __getattr__(self, name: str) -> object:
            seen.append(name)
            return getattr(own, name)

    monkeypatch.setattr(gpu, "gpu_kernels", Seen)
    for module in (coded_tables_module, coded_head):
        monkeypatch.setattr(module, "has_gpu_kernels", lambda device: True)
    return seen


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    error = (found.cpu().double() - expected.double()).norm()
    return found.shape == expected.shape and bool(error <= tolerance * expected.double().norm())


def ids_of(n: int, *shape: int) -> Tensor:
    return torch.randint(0, n, shape, generator=torch.Generator().manual_seed(7))


def made(matrix: CodedMatrix, device: torch.device, dtype: torch.dtype = torch.float32) -> CodedEmbedding:
    return embedding_of(matrix).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_rows_are_those_that_torch_decodes(
    matrix: CodedMatrix, device: torch.device, dtype: torch.dtype, kernels: list[str]
) -> None:
    table = embedding_of(matrix).decode(torch.arange(matrix.shape.n))
    embedding, ids = made(matrix, device, dtype), ids_of(matrix.shape.n, 4, 5)
    for own in (ids, ids.int(), ids[:0], torch.tensor(matrix.shape.n - 1), ids.t()):
        found = embedding(own.to(device))
        assert found.dtype == dtype
        assert close(found, table[own.long()], TOLERANCE if dtype.itemsize >= 4 else torch.finfo(dtype).eps)
    assert set(kernels) == {"place"}


def test_many_ids_are_read_in_parts(
    matrices: dict[str, CodedMatrix], device: torch.device, kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_reading, "_MOST_BETWEEN", 1)
    embedding, ids = made(matrices["auto"], device), ids_of(300, 1025)
    assert close(embedding(ids.to(device)), embedding_of(matrices["auto"]).decode(ids))
    assert len(kernels) == 2


@pytest.mark.parametrize("positions", [1, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_the_decoded_table(
    matrix: CodedMatrix, device: torch.device, positions: int, dtype: torch.dtype, kernels: list[str]
) -> None:
    table = embedding_of(matrix).decode(torch.arange(matrix.shape.n)).double()
    embedding = made(matrix, device, dtype)
    head, hidden = CodedLMHead(embedding.shape, primary=embedding, dtype=dtype), gaussian(1, positions, ODD).to(dtype)
    found = head(hidden.to(device))
    assert found.dtype == dtype
    assert close(found, hidden.double() @ table.T, 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps)
    assert set(kernels) == {"logits"}


def test_many_positions_and_training_decode_by_kernels_too(
    matrix: CodedMatrix, device: torch.device, kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coded_head, "_MOST_READ_GPU", 2)
    embedding, table = made(matrix, device), embedding_of(matrix).decode(torch.arange(matrix.shape.n))
    head, hidden = CodedLMHead(embedding.shape, primary=embedding), gaussian(3, ODD)
    found = head(hidden.to(device))
    assert set(kernels) == {"coordinates"}
    assert close(found, hidden @ table.T, 2e-6)


def test_gradients_of_a_head_that_learns(matrices: dict[str, CodedMatrix], device: torch.device) -> None:
    gradients = []
    for with_kernels in (False, True):
        embedding = made(matrices["own decoders"], device)
        embedding.unfreeze()
        head, hidden = CodedLMHead(embedding.shape, primary=embedding), gaussian(3, ODD).to(device).requires_grad_()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(coded_head, "has_gpu_kernels", lambda device, use=with_kernels: use)
            head(hidden).square().sum().backward()
        gradients.append([hidden.grad, *(parameter.grad for parameter in embedding.parameters())])
    for found, expected in zip(*gradients, strict=True):
        assert found is not None
        assert expected is not None
        assert close(found, expected.cpu(), 1e-5)


def test_what_was_changed_or_copied_is_read(
    matrices: dict[str, CodedMatrix], device: torch.device, kernels: list[str]
) -> None:
    embedding, ids = made(matrices["auto"], device), torch.arange(9).to(device)
    before = embedding(ids)
    other = copy.deepcopy(embedding)
    with torch.no_grad():
        other.codes[:64] ^= 255
    assert not torch.equal(other(ids), before)
    assert torch.equal(embedding(ids), before)
    assert close(other(ids), other.cpu().decode(ids.cpu()))


def test_where_triton_compiles_nothing_torch_reads_and_says_so(
    matrices: dict[str, CodedMatrix], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("Failed to find C compiler.\nMore.")

    monkeypatch.setattr(gpu, "gpu_kernels", fails)
    gpu.has_gpu_kernels.cache_clear()
    with pytest.warns(UserWarning, match=r"takes longer on a GPU: RuntimeError: Failed to find C compiler\.$"):
        assert not gpu.has_gpu_kernels(torch.device("cuda", 0))
    assert made(matrices["auto"], device)(torch.arange(3).to(device)).shape == (3, ODD)
    gpu.has_gpu_kernels.cache_clear()


def test_the_kernels_compile_for_gpus_that_are_not_here() -> None:
    """In a process of its own, where Triton does not interpret."""
    script = Path(__file__).parent.parent / "compile_gpu_kernels.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["place", "logits", "coordinates", "viterbi"]
