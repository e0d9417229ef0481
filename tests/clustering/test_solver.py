import torch

from projclust.clustering.solver import fill_spare_clusters
from projclust.clustering.subspaces import assign_rows, fit_subspaces, squared_norms


def test_an_empty_cluster_takes_the_worst_served_rows() -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    distances = torch.tensor([0.0, 5.0, 1.0, 9.0, 0.5, 2.0])
    filled = fill_spare_clusters(labels, distances, torch.full((6,), 10.0), None, n_clusters=2, capacity=2)
    assert filled.tolist() == [0, 1, 0, 1, 0, 0]
    assert labels.tolist() == [0] * 6  # the argument is left alone


def test_weights_decide_who_is_served_worst_and_who_counts() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    distances = torch.tensor([4.0, 3.0, 2.0, 1.0, 1.0])
    weights = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0])  # cluster 1 has one row that counts
    filled = fill_spare_clusters(labels, distances, torch.full((5,), 10.0), weights, n_clusters=2, capacity=2)
    assert filled.tolist() == [0, 1, 0, 1, 1]  # 2 x 3 is worse than 1 x 4


def test_full_clusters_and_exact_rows_stay() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    untouched = fill_spare_clusters(labels, torch.ones(4), torch.ones(4), None, n_clusters=2, capacity=2)
    assert torch.equal(untouched, labels)
    exact = fill_spare_clusters(torch.zeros(4, dtype=torch.int64), torch.zeros(4), torch.ones(4), None, 2, 2)
    assert exact.tolist() == [0, 0, 0, 0]


def test_filling_never_raises_the_cost() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(60, 8, generator=generator, dtype=torch.float64)
        norms = squared_norms(rows)
        labels = torch.randint(0, 3, (60,), generator=generator)
        labels[labels == 2] = 0
        labels[:2] = 2  # cluster 2 has two rows, fewer than its rank
        for affine in (False, True):
            before = fit_subspaces(rows, None, labels, 3, 4, affine)
            assigned, distances = assign_rows(rows, norms, before)
            filled = fill_spare_clusters(assigned, distances, norms, None, 3, 5 if affine else 4)
            after = fit_subspaces(rows, None, filled, 3, 4, affine).spectra[:, 4:].sum()
            assert after <= distances.sum() * (1 + 1e-9)
