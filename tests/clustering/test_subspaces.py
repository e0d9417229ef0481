import pytest
import torch
from torch import Tensor

from projclust.clustering.rows import Rows
from projclust.clustering.scatter import fit_subspaces
from projclust.clustering.subspaces import (
    Subspaces,
    assign_rows,
    orthonormal_rows,
    project_rows,
)


def axes(*numbers: int, d: int) -> Tensor:
    """Subspaces spanned by one coordinate axis each, (k, 1, d)."""
    return torch.eye(d)[list(numbers)].unsqueeze(1)


def test_rows_go_to_the_nearest_axis_by_hand() -> None:
    rows = torch.tensor([[3.0, 4.0], [5.0, 1.0], [0.0, -2.0], [0.0, 0.0]])
    found = assign_rows(Rows.of(rows), Subspaces.of(axes(0, 1, d=2)))
    assert found.labels.tolist() == [1, 0, 1, 0]
    assert found.distances.tolist() == [9.0, 1.0, 0.0, 0.0]  # 3^2, 1^2, exact, exact


def test_a_price_on_a_subspace_by_hand() -> None:
    rows = torch.tensor([[3.0, 4.0], [1.0, 3.0]])
    subspaces = Subspaces.of(axes(0, 1, d=2))
    # The second axis is nearer by 16 - 9 = 7 and by 9 - 1 = 8: a price between them moves the first row only.
    priced = assign_rows(Rows.of(rows), subspaces, torch.tensor([0.0, 7.5]))
    assert priced.labels.tolist() == [0, 1]
    assert priced.distances.tolist() == [16.0, 1.0]  # the price is no part of the distance
    # A row of twice the weight pays half, for each unit of weight.
    weighted = assign_rows(Rows.of(rows, torch.tensor([2.0, 1.0])), subspaces, torch.tensor([0.0, 7.5]))
    assert weighted.labels.tolist() == [1, 1]


def test_unequal_ranks_use_only_their_own_directions() -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    bases = orthonormal_rows(torch.randn(3, 4, 8, generator=generator, dtype=torch.float64))
    subspaces = Subspaces(bases, None, [1, 4, 2])
    found = assign_rows(Rows.of(table), subspaces)
    direct = torch.stack(
        [(table - table @ bases[c, :j].T @ bases[c, :j]).square().sum(1) for c, j in enumerate([1, 4, 2])], 1
    )
    assert torch.equal(found.labels, direct.argmin(1))
    assert torch.allclose(found.distances, direct.min(1).values)
    coefficients, residuals = project_rows(Rows.of(table), found.labels, subspaces)
    assert torch.allclose(residuals, found.distances)
    assert not coefficients[found.labels == 0, 1:].any()
    assert not coefficients[found.labels == 2, 2:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_made_orthonormal_one_after_the_other(dtype: torch.dtype) -> None:
    matrices = torch.randn(5, 4, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrices[1, 2] = matrices[1, 0] + 1e-9 * matrices[1, 1]  # hardly independent
    matrices[2, 3] = 0
    matrices[3] = 0
    matrices[4] *= 1e-12
    bases = orthonormal_rows(matrices)
    assert bases.dtype == dtype
    assert torch.allclose(bases @ bases.mT, torch.eye(4, dtype=dtype).expand(5, 4, 4), atol=1e-5)
    for full in (0, 4):
        for size in range(1, 5):  # every leading part spans the same rows
            part = bases[full, :size]
            rest = matrices[full, :size] - matrices[full, :size] @ part.T @ part
            assert rest.norm() <= 1e-5 * matrices[full].norm()


def test_affine_distance_by_hand() -> None:
    # The line through (0, 1) along x, and the line through (4, 0) along y.
    means = torch.tensor([[0.0, 1.0], [4.0, 0.0]])
    rows = torch.tensor([[7.0, 3.0], [5.0, 9.0], [2.0, 1.0]])
    found = assign_rows(Rows.of(rows), Subspaces.of(axes(0, 1, d=2), means))
    assert found.labels.tolist() == [0, 1, 0]
    assert found.distances.tolist() == pytest.approx([4.0, 1.0, 0.0], abs=1e-5)


def test_best_line_by_hand() -> None:
    # Three points on the line y = x and one off it by (-1, 1): the best line stays y = x, the error is that point's 2.
    rows = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [-1.0, 1.0]], dtype=torch.float64)
    fit, spectra = fit_subspaces(Rows.of(rows), torch.zeros(4, dtype=torch.int64), 1, 1)
    assert fit.bases[0, 0].abs().tolist() == pytest.approx([0.5**0.5] * 2)
    assert spectra[0].tolist() == pytest.approx([28.0, 2.0])


def test_affine_fit_by_hand() -> None:
    # Two groups on lines that miss the origin; weights decide the mean of the second.
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [5.0, 0.0], [5.0, 4.0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 3.0, 1.0], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    fit, _ = fit_subspaces(Rows.of(rows, weights), labels, 2, 1, affine=True)
    assert fit.means is not None
    assert fit.means.tolist() == [[1.0, 1.0], [5.0, 1.0]]
    assert fit.bases.abs().squeeze(1).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert assign_rows(Rows.of(rows), fit).distances.tolist() == pytest.approx([0.0] * 4, abs=1e-9)


def test_weights_are_repetitions() -> None:
    rows = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(40) % 4
    labels = torch.arange(40) % 2
    weighted, spectra = fit_subspaces(Rows.of(rows, counts), labels, 2, 3, affine=True)
    repetitions = Rows.of(rows.repeat_interleave(counts, 0))
    repeated, same_spectra = fit_subspaces(repetitions, labels.repeat_interleave(counts), 2, 3, affine=True)
    assert torch.allclose(spectra, same_spectra)
    assert weighted.means is not None
    assert repeated.means is not None
    assert torch.allclose(weighted.means, repeated.means)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bases_are_orthonormal_and_spectra_give_the_error(dtype: torch.dtype, affine: bool) -> None:
    rows = torch.randn(300, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(300) % 3
    fit, spectra = fit_subspaces(Rows.of(rows), labels, 3, 5, affine)
    identity = torch.eye(5, dtype=fit.bases.dtype).expand(3, 5, 5)
    assert torch.allclose(fit.bases @ fit.bases.mT, identity, atol=1e-5)
    _, residuals = project_rows(Rows.of(rows), labels, fit)
    for cluster in range(3):
        assert residuals[labels == cluster].sum().item() == pytest.approx(spectra[cluster, 5:].sum().item(), rel=1e-4)


def test_distances_match_the_direct_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(500, 10, generator=generator, dtype=torch.float64)
    bases = torch.linalg.qr(torch.randn(4, 10, 3, generator=generator, dtype=torch.float64))[0].mT.contiguous()
    means = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    found = assign_rows(Rows.of(rows), Subspaces.of(bases, means))
    centred = rows.unsqueeze(1) - means  # (rows, k, d)
    projected = torch.einsum("nkd,kjd,kje->nke", centred, bases, bases)
    direct = (centred - projected).square().sum(2)
    assert torch.equal(found.labels, direct.argmin(1))
    assert torch.allclose(found.distances, direct.min(1).values)


def test_an_empty_group_gets_an_orthonormal_basis() -> None:
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    fit, _ = fit_subspaces(Rows.of(rows), torch.zeros(10, dtype=torch.int64), 2, 2, affine=True)
    assert torch.allclose(fit.bases[1] @ fit.bases[1].T, torch.eye(2))
    assert torch.isfinite(fit.bases).all()


def test_blocks_cover_every_row_once() -> None:
    rows = Rows.of(torch.arange(5000.0).unsqueeze(1).expand(5000, 3))
    seen = torch.cat([block[:, 0] for _, block in rows.blocks(10**5)])
    assert torch.equal(seen, torch.arange(5000.0))
    chosen = torch.tensor([7, 7, 4999])
    assert torch.cat([block[:, 0] for _, block in rows.blocks(3, chosen)]).tolist() == [7, 7, 4999]
