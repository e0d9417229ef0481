"""The function under the estimator, with its options and its result."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from projclust.clustering import ProjectiveClustering
from projclust.clustering.fit import Clustering, ClusteringOptions, fit_clustering
from projclust.errors import ProjclustError
from projclust.options import Init, Loss, Method, Ranks


def table() -> torch.Tensor:
    return torch.randn(300, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(0.8 ** torch.arange(12.0))


def test_strings_stand_for_the_members_of_enumerations() -> None:
    options = ClusteringOptions(method="projective", ranks="adaptive", loss="l2", init="random")  # type: ignore[arg-type]
    assert (options.method, options.ranks, options.loss) == (Method.PROJECTIVE, Ranks.ADAPTIVE, Loss.L2)
    assert type(options.init) is Init
    with pytest.raises(FrozenInstanceError):
        options.rank = 3  # type: ignore[misc]


def test_options_and_parameters_have_the_same_defaults() -> None:
    parameters = ProjectiveClustering().get_params()
    for part in fields(ClusteringOptions):
        assert parameters[part.name] == part.default


def test_options_are_checked_when_they_are_made() -> None:
    with pytest.raises(ProjclustError, match="`loss` must be one of l2, l1, huber, not 'l3'"):
        ClusteringOptions(loss="l3")  # type: ignore[arg-type]
    with pytest.raises(ProjclustError, match="must be l2"):
        ClusteringOptions(method=Method.RANDOM, loss=Loss.HUBER)
    with pytest.raises(ProjclustError, match="`max_iter` must be at least 1"):
        ClusteringOptions(max_iter=0)


@pytest.mark.parametrize(
    "options",
    [
        ClusteringOptions(3, 4),
        ClusteringOptions(3, 4, affine=True, ranks=Ranks.ADAPTIVE),
        ClusteringOptions(2, 4, loss=Loss.L1),
        ClusteringOptions(3, 4, method=Method.RANDOM),
    ],
)
def test_the_estimator_returns_what_the_function_finds(options: ClusteringOptions) -> None:
    weights = torch.rand(300, generator=torch.Generator().manual_seed(1))
    found = fit_clustering(table(), options, weights)
    parameters = {part.name: getattr(options, part.name) for part in fields(options)}
    fitted = ProjectiveClustering(**parameters).fit(table(), sample_weight=weights)
    for part in fields(Clustering):
        name = "components_" if part.name == "bases" else f"{part.name}_"
        mine, theirs = getattr(found, part.name), getattr(fitted, name)
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
    assert found.bases.shape == (options.n_clusters, max(found.ranks), 12)
    assert found.coefficients.shape == (300, max(found.ranks))
    assert found.spectra.shape == (options.n_clusters, 12)
    assert found.cost_history[-1] == found.inertia


def test_the_function_does_not_wait_for_scikit_learn() -> None:
    program = "import sys, projclust.clustering.fit; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
