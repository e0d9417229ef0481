import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from projclust import ProjclustError, ProjectiveClustering


def union_of_subspaces(k: int, j: int, n: int = 400, d: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows lying exactly in k random subspaces of rank j, and which one."""
    generator = torch.Generator().manual_seed(seed)
    bases = torch.randn(k, j, d, generator=generator, dtype=torch.float64)
    truth = torch.arange(n) % k
    inner = torch.randn(n, 1, j, generator=generator, dtype=torch.float64)
    return (inner @ bases[truth]).squeeze(1), truth


def table(n: int = 600, d: int = 24, seed: int = 0) -> Tensor:
    """Rows with a decaying spectrum."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.diag(0.85 ** torch.arange(d)) + 0.3


def test_four_points_by_hand() -> None:
    # Two points on each axis, one of the four a little off: the best two lines leave that point's offset as the cost.
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, 1.0]], dtype=torch.float64)
    fitted = ProjectiveClustering(2, 1).fit(rows)
    assert fitted.labels_[0] == fitted.labels_[1] != fitted.labels_[2] == fitted.labels_[3]
    assert fitted.inertia_ == pytest.approx(0.0, abs=1e-12)
    assert sorted(fitted.components_.abs().squeeze(1).tolist()) == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("init", ["spherical", "residual", "random"])
def test_recovers_subspaces_that_are_there(init: str, device: torch.device) -> None:
    rows, truth = union_of_subspaces(3, 2)
    fitted = ProjectiveClustering(3, 2, init=init, device=device).fit(rows)
    assert fitted.inertia_ < 1e-12 * rows.square().sum()
    assert all(len(fitted.labels_.cpu()[truth == c].unique()) == 1 for c in range(3))


def test_one_cluster_is_truncated_svd() -> None:
    rows = table()
    singular = torch.linalg.svdvals(rows.double())
    for method in ("projective", "svd"):
        fitted = ProjectiveClustering(1, 6, method=method).fit(rows)
        assert fitted.inertia_ == pytest.approx(singular[6:].square().sum().item(), rel=1e-5)


def test_one_affine_cluster_is_principal_components() -> None:
    rows = table()
    centred = rows.double() - rows.double().mean(0)
    fitted = ProjectiveClustering(1, 6, affine=True).fit(rows)
    assert fitted.inertia_ == pytest.approx(torch.linalg.svdvals(centred)[6:].square().sum().item(), rel=1e-5)
    assert fitted.means_ is not None
    assert torch.allclose(fitted.means_[0], rows.mean(0), atol=1e-5)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("init", ["spherical", "residual", "random"])
def test_cost_never_rises(init: str, weighted: bool, affine: bool, device: torch.device) -> None:
    for seed in range(5):
        rows = table(seed=seed).to(device)
        weights = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)) if weighted else None
        fitted = ProjectiveClustering(6, 5, init=init, affine=affine, restarts=2, seed=seed, tol=0.0).fit(
            rows, sample_weight=weights
        )
        history = fitted.cost_history_
        assert len(history) == fitted.n_iter_ >= 3
        assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(history))
        assert history[-1] < history[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_is_consistent(dtype: torch.dtype, device: torch.device) -> None:
    rows = table().to(device, dtype)
    fitted = ProjectiveClustering(4, 6, affine=True, restarts=2).fit(rows)
    assert fitted.labels_.dtype == torch.int64
    assert torch.equal(fitted.predict(rows), fitted.labels_)
    gram = fitted.components_ @ fitted.components_.mT
    assert torch.allclose(gram, torch.eye(6, dtype=gram.dtype, device=device).expand_as(gram), atol=1e-5)
    assert torch.allclose(fitted.transform(rows), fitted.coefficients_, atol=1e-4)
    rebuilt = fitted.inverse_transform(fitted.coefficients_, fitted.labels_)
    residuals = (rebuilt - rows.to(rebuilt.dtype)).square().sum(1)
    assert torch.allclose(residuals, fitted.residuals_, rtol=1e-3, atol=1e-5)
    assert fitted.inertia_ == pytest.approx(residuals.double().sum().item(), rel=1e-4)


def test_fit_predict_equals_fit_then_predict() -> None:
    rows = table()
    labels = ProjectiveClustering(4, 6, restarts=2).fit_predict(rows)
    assert torch.equal(labels, ProjectiveClustering(4, 6, restarts=2).fit(rows).predict(rows))


def test_clustering_beats_svd_and_the_random_partition_of_equal_size() -> None:
    rows, _ = union_of_subspaces(4, 3, n=2000)
    rows = rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(9))
    k, j, (n, d) = 4, 3, rows.shape
    projective = ProjectiveClustering(k, j).fit(rows).inertia_
    random = ProjectiveClustering(k, j, method="random").fit(rows).inertia_
    svd = ProjectiveClustering(1, (n * j + k * j * d) // (n + d), method="svd").fit(rows).inertia_
    assert projective < 0.5 * min(random, svd)


def test_random_partition_is_one_fit_to_equal_groups() -> None:
    fitted = ProjectiveClustering(4, 6, method="random").fit(table())
    assert torch.bincount(fitted.labels_).tolist() == [150] * 4
    assert fitted.n_iter_ == 1


def test_weights_pull_the_fit() -> None:
    # Two orthogonal lines, one subspace: it follows whichever the weights favour.
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    for weights, axis in (([9.0, 9.0, 1.0, 1.0], 0), ([1.0, 1.0, 9.0, 9.0], 1)):
        fitted = ProjectiveClustering(1, 1).fit(rows, sample_weight=weights)
        assert fitted.components_[0, 0].abs()[axis].item() == pytest.approx(1.0)
        assert fitted.inertia_ == pytest.approx(5.0)


def test_rows_of_no_weight_have_no_influence() -> None:
    rows, _ = union_of_subspaces(2, 2)
    noise = 50 * torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    weights = torch.cat([torch.ones(400), torch.zeros(30)])
    fitted = ProjectiveClustering(2, 2).fit(torch.cat([rows, noise]), sample_weight=weights)
    assert fitted.inertia_ < 1e-12 * rows.square().sum()


def test_more_clusters_than_the_rows_can_fill() -> None:
    # 12 rows, 8 clusters of rank 3: most clusters cannot have a row too many, and some stay empty.
    rows = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = ProjectiveClustering(8, 3).fit(rows)
    assert fitted.inertia_ < 1e-12
    gram = fitted.components_ @ fitted.components_.mT
    assert torch.allclose(gram, torch.eye(3, dtype=gram.dtype).expand_as(gram))


def test_same_seed_same_bytes_and_restarts_only_help() -> None:
    rows = table()
    first, second = (ProjectiveClustering(5, 4, seed=3).fit(rows) for _ in range(2))
    assert torch.equal(first.components_, second.components_)
    assert torch.equal(first.coefficients_, second.coefficients_)
    assert first.cost_history_ == second.cost_history_
    assert first.inertia_ != ProjectiveClustering(5, 4, seed=4).fit(rows).inertia_


def test_max_iter_and_progress() -> None:
    seen: list[tuple[int, int, float]] = []
    fitted = ProjectiveClustering(5, 4, restarts=3, max_iter=2, tol=0.0).fit(
        table(), progress=lambda *where: seen.append(where)
    )
    assert [where[:2] for where in seen] == [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)]
    assert [cost for _, step, cost in seen if step] == fitted.cost_history_[:2]
    assert fitted.n_iter_ == 3  # two steps and the exact finish


def test_takes_numpy_and_does_not_touch_it() -> None:
    rows = table().numpy()
    before = rows.copy()
    fitted = ProjectiveClustering(3, 4, restarts=1).fit(rows, sample_weight=np.ones(len(rows)))
    assert (rows == before).all()
    assert fitted.inertia_ == pytest.approx(ProjectiveClustering(3, 4, restarts=1).fit(rows).inertia_, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "`n_clusters` must be at least 1"),
        ({"rank": 24}, "must be less than the 24 columns"),
        ({"n_clusters": 601}, "at least as many rows"),
        ({"restarts": 0}, "`restarts` must be at least 1"),
        ({"tol": math.nan}, "`tol` must be at least 0"),
        ({"method": "magic"}, "`method` must be one of projective, svd, random, not 'magic'"),
        ({"method": "svd", "n_clusters": 2}, "k must be 1"),
    ],
)
def test_refuses_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        ProjectiveClustering(**{"rank": 4, **options}).fit(table())  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_rows_that_are_not_finite(value: float) -> None:
    rows = table(n=5000)
    rows[4321, 3] = value
    with pytest.raises(ProjclustError, match="first in row 4321"):
        ProjectiveClustering(3, 4).fit(rows)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.zeros(600), "nothing to fit"),
        (torch.full((600,), -1.0), "not negative"),
        (torch.full((600,), math.nan), "finite"),
        (torch.full((600,), 1e308, dtype=torch.float64), "nothing to fit"),
        (torch.ones(599), r"shape \(600,\)"),
    ],
)
def test_refuses_bad_weights(weights: Tensor, message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        ProjectiveClustering(3, 4).fit(table(), sample_weight=weights)


def test_refuses_use_before_fit_and_other_widths() -> None:
    with pytest.raises(ProjclustError, match="not fitted"):
        ProjectiveClustering(3, 4).predict(table())
    fitted = ProjectiveClustering(3, 4, restarts=1).fit(table())
    with pytest.raises(ProjclustError, match="24"):
        fitted.predict(torch.zeros(5, 9))
    with pytest.raises(ProjclustError, match="two dimensions"):
        fitted.fit(torch.zeros(5))


def parameters(fitted: ProjectiveClustering) -> int:
    """What the ranks of a fit store: coefficients of every row and a basis of every cluster."""
    sizes = torch.bincount(fitted.labels_, minlength=len(fitted.ranks_)).tolist()
    d = fitted.components_.shape[2]
    return sum(rank * (size + d) for rank, size in zip(fitted.ranks_, sizes, strict=True))


def flat_and_round(seed: int = 0) -> Tensor:
    """Rows near a plane, and rows that fill 18 dimensions: what a direction is worth differs between the two."""
    generator = torch.Generator().manual_seed(seed)
    plane = 4 * torch.randn(400, 2, generator=generator) @ torch.randn(2, 24, generator=generator)
    space = torch.randn(400, 18, generator=generator) @ torch.randn(18, 24, generator=generator)
    return torch.cat([plane, space]) + 0.05 * torch.randn(800, 24, generator=generator)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_unequal_ranks_spend_no_more_and_save(weighted: bool, affine: bool) -> None:
    rows = flat_and_round()
    weights = torch.rand(len(rows), generator=torch.Generator().manual_seed(0)) if weighted else None
    equal, fitted = (
        ProjectiveClustering(3, 6, affine=affine, ranks=ranks).fit(rows, sample_weight=weights)
        for ranks in ("equal", "adaptive")
    )
    assert equal.ranks_ == [6] * 3 != fitted.ranks_
    assert parameters(fitted) <= parameters(equal)
    assert fitted.inertia_ < 0.8 * equal.inertia_
    history = fitted.cost_history_
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(history))
    # Beyond its rank a cluster has neither directions nor coefficients, so the rest of the interface needs no ranks.
    for cluster, rank in enumerate(fitted.ranks_):
        assert not fitted.components_[cluster, rank:].any()
        assert not fitted.coefficients_[fitted.labels_ == cluster, rank:].any()
    rebuilt = fitted.inverse_transform(fitted.coefficients_, fitted.labels_)
    assert torch.allclose((rebuilt - rows).square().sum(1), fitted.residuals_, rtol=1e-3, atol=1e-5)
    assert torch.allclose(fitted.transform(rows, fitted.labels_), fitted.coefficients_, atol=1e-4)


@pytest.mark.parametrize("affine", [False, True])
def test_unequal_ranks_find_a_few_round_rows_among_flat_ones(affine: bool) -> None:
    # 90 rows near a plane and 30 in all directions, which subspaces of rank 5 share out among them: from there on each
    # would need its rank.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(120, 16, generator=generator)
    plane = torch.randn(2, 16, generator=generator)
    rows[:90] = 3 * torch.randn(90, 2, generator=generator) @ plane + 0.01 * rows[:90]
    shares = []
    for seed in range(6):
        equal, fitted = (
            ProjectiveClustering(3, 5, affine=affine, ranks=ranks, seed=seed).fit(rows)
            for ranks in ("equal", "adaptive")
        )
        assert parameters(fitted) <= parameters(equal)
        shares.append(fitted.inertia_ / equal.inertia_)
    assert sum(shares) / len(shares) < 0.6


def test_unequal_ranks_are_never_worse() -> None:
    for seed in range(8):
        rows = torch.randn(120, 16, generator=torch.Generator().manual_seed(seed))
        equal, fitted = (ProjectiveClustering(2, 5, ranks=ranks).fit(rows) for ranks in ("equal", "adaptive"))
        assert fitted.inertia_ <= equal.inertia_
        assert parameters(fitted) <= parameters(equal)


@pytest.mark.parametrize("method", ["projective", "svd"])
def test_far_rows_do_not_dominate_robust_losses(method: str) -> None:
    # Two lines and a few far rows: least squares turns towards those, absolute and Huber errors do not.
    k = 2 if method == "projective" else 1
    rows, _ = union_of_subspaces(k, 1, n=300, d=5)
    rows = rows + 0.01 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(1), dtype=rows.dtype)
    far = 30 * torch.randn(8, 5, generator=torch.Generator().manual_seed(2), dtype=rows.dtype)
    everything = torch.cat([rows, far])
    close = {}
    for loss in ("l2", "l1", "huber"):
        fitted = ProjectiveClustering(k, 1, method=method, loss=loss, max_iter=300, tol=1e-7).fit(everything)
        close[loss] = float(fitted.residuals_[:300].sum())
        history = fitted.cost_history_
        assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(history))
        assert history[-1] == fitted.inertia_
    assert max(close["l1"], close["huber"]) < 0.1 * close["l2"]


def test_robust_losses_of_mostly_empty_rows() -> None:
    rows = torch.zeros(40, 6)
    rows[::4] = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    for table, rest in ((rows, True), (torch.zeros(40, 6), False)):
        for loss in ("l1", "huber"):
            fitted = ProjectiveClustering(2, 2, loss=loss).fit(table)
            assert (0 < fitted.inertia_ < table.norm(dim=1).sum()) == rest


def test_losses_by_hand() -> None:
    # One line through the origin along x, rows at distances 0, 1, 2, 4 from it; their median (the lower one) is 1.
    rows = torch.tensor([[50.0, 0.0], [50.0, 1.0], [50.0, -2.0], [50.0, 1.0]], dtype=torch.float64)
    rows = torch.cat([rows, rows * torch.tensor([1.0, -1.0])])  # symmetric, so that the best line is the axis
    for loss, expected in (("l2", 12.0), ("l1", 8.0), ("huber", 2 * (0 + 1 + 3 + 1))):
        fitted = ProjectiveClustering(1, 1, method="svd", loss=loss, tol=0.0).fit(rows)
        assert fitted.components_[0, 0].abs().tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
        assert fitted.inertia_ == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l3"}, "`loss` must be one of l2, l1, huber"),
        ({"ranks": "some"}, "`ranks` must be one of equal, adaptive"),
        ({"method": "random", "loss": "l1"}, "must be l2"),
        ({"ranks": "adaptive", "n_clusters": 1}, "several subspaces"),
        ({"ranks": "adaptive", "method": "random"}, "several subspaces"),
        ({"ranks": "adaptive", "loss": "huber"}, "use loss l2"),
    ],
)
def test_refuses_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        ProjectiveClustering(**{"rank": 4, **options}).fit(table())  # type: ignore[arg-type]


def test_a_memory_map_in_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    save_file({"table": table(n=2000).half()}, tmp_path / "table.safetensors")
    with safe_open(tmp_path / "table.safetensors", framework="pt") as file:
        mapped = file.get_tensor("table")
    fitted = ProjectiveClustering(4, 6).fit(mapped)
    assert fitted.inertia_ == ProjectiveClustering(4, 6).fit(mapped.float()).inertia_
