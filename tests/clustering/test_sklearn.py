"""The estimator as users of scikit-learn, numpy and pandas meet it."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from projclust.clustering import ProjectiveClustering
from projclust.errors import ProjclustError

ARRAYS = ("labels_", "components_", "means_", "coefficients_", "residuals_", "spectra_")


def rows(n: int = 300, d: int = 12) -> np.ndarray:
    """Rows with a decaying spectrum, float32."""
    return (np.random.default_rng(0).standard_normal((n, d)) * 0.8 ** np.arange(d)).astype(np.float32)


# The checks of scikit-learn that cannot hold, with the reasons.
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "Starts are drawn from the rows, so that repeated rows lead to other "
    "starts than weighted ones and, where the cost has several local minima, to another result.",
}
EXPECTED_AFFINE_FAILURES = {
    "check_clustering": "A line passes through any two blobs of points in a plane, so that k lines need not part k blobs.",
}


@pytest.mark.parametrize(
    ("affine", "expected"),
    [(False, EXPECTED_FAILURES), (True, EXPECTED_FAILURES | EXPECTED_AFFINE_FAILURES)],
)
def test_checks_of_scikit_learn(affine: bool, expected: dict[str, str]) -> None:
    estimator = ProjectiveClustering(2, 1, restarts=2, affine=affine)
    results = check_estimator(estimator, expected_failed_checks=expected, on_skip=None, on_fail=None)
    names = {
        state: {found["check_name"] for found in results if found["status"] == state} for state in ("failed", "xfail")
    }
    assert not names["failed"]
    assert names["xfail"] == set(expected)
    assert len(results) > 50


def test_parameters_survive_get_set_and_clone() -> None:
    given = {"n_clusters": 3, "rank": 4, "affine": True, "init": "random", "n_init": 2, "random_state": 7, "tol": 0.01}
    estimator = ProjectiveClustering(**given)  # type: ignore[arg-type]
    assert {name: estimator.get_params()[name] for name in given} == given
    other = ProjectiveClustering().set_params(**estimator.get_params())
    assert other.get_params() == estimator.get_params()
    fitted = clone(estimator).fit(rows())
    assert not hasattr(estimator, "labels_")
    assert clone(fitted).get_params() == estimator.get_params()
    assert not hasattr(clone(fitted), "labels_")
    np.testing.assert_array_equal(fitted.labels_, other.fit(rows()).labels_)


def test_n_init_and_random_state_win_over_restarts_and_seed() -> None:
    by_seed = ProjectiveClustering(3, 4, seed=5, restarts=3).fit(rows())
    by_random_state = ProjectiveClustering(3, 4, seed=1, random_state=5, restarts=9, n_init=3).fit(rows())
    np.testing.assert_array_equal(by_seed.components_, by_random_state.components_)
    judged: list[int] = []
    ProjectiveClustering(3, 4, restarts=9, n_init=3).fit(rows(), progress=lambda start, step, cost: judged.append(step))
    assert judged.count(0) == 3
    with pytest.raises(ProjclustError, match="`restarts` must be at least 1"):
        ProjectiveClustering(3, 4, n_init=0).fit(rows())


def test_a_random_state_gives_every_fit_a_seed_of_its_own() -> None:
    first, again = (np.random.RandomState(0) for _ in range(2))
    estimator = ProjectiveClustering(5, 2, n_init=1, random_state=first)
    fits = [estimator.fit(rows()).inertia_ for _ in range(3)]
    assert len(set(fits)) > 1
    assert ProjectiveClustering(5, 2, n_init=1, random_state=again).fit(rows()).inertia_ == fits[0]


def test_what_comes_out_is_of_the_kind_that_went_in() -> None:
    array = rows()
    estimator = ProjectiveClustering(3, 4, affine=True, restarts=1)
    from_tensor = clone(estimator).fit(torch.from_numpy(array))
    from_array = clone(estimator).fit(array)
    for name in ARRAYS:
        assert isinstance(getattr(from_tensor, name), torch.Tensor)
        assert isinstance(getattr(from_array, name), np.ndarray)
        np.testing.assert_array_equal(getattr(from_array, name), getattr(from_tensor, name).numpy())
    assert isinstance(clone(estimator).fit(array.tolist()).labels_, np.ndarray)
    # Each method goes by its own input, whatever the fit was given.
    for fitted in (from_tensor, from_array):
        for given, kind in ((torch.from_numpy(array), torch.Tensor), (array, np.ndarray), (array.tolist(), np.ndarray)):
            assert isinstance(fitted.predict(given), kind)
            assert isinstance(fitted.transform(given), kind)
            assert isinstance(fitted.transform(given, fitted.labels_), kind)
        for coefficients in (from_tensor.coefficients_, from_array.coefficients_):
            rebuilt = fitted.inverse_transform(coefficients, fitted.labels_)
            assert isinstance(rebuilt, type(coefficients))
            assert float(np.square(np.asarray(rebuilt) - array).sum()) == pytest.approx(fitted.inertia_, rel=1e-4)


def test_a_data_frame_brings_the_names_of_its_columns() -> None:
    pandas: Any = pytest.importorskip("pandas")
    names = [f"column {number}" for number in range(12)]
    frame = pandas.DataFrame(rows(), columns=names, index=np.arange(300)[::-1])
    weights = pandas.Series(np.linspace(0, 1, 300), index=frame.index)
    fitted = ProjectiveClustering(3, 4, restarts=1).fit(frame, sample_weight=weights)
    plain = ProjectiveClustering(3, 4, restarts=1).fit(rows(), sample_weight=weights.to_numpy())
    assert fitted.feature_names_in_.tolist() == names
    assert not hasattr(plain, "feature_names_in_")
    assert fitted.n_features_in_ == plain.n_features_in_ == 12
    assert isinstance(fitted.labels_, np.ndarray)
    np.testing.assert_array_equal(fitted.labels_, plain.labels_)
    np.testing.assert_array_equal(fitted.predict(frame), fitted.labels_)
    with pytest.raises(ProjclustError, match="feature names"):
        fitted.predict(frame[names[::-1]])


def test_rows_are_read_from_memory_that_must_not_be_written_to(recwarn: pytest.WarningsRecorder) -> None:
    array = rows()
    array.flags.writeable = False
    assert ProjectiveClustering(3, 4, restarts=1).fit(array).inertia_ > 0
    assert not recwarn.list


def test_use_before_fit_is_an_error_of_both_libraries() -> None:
    for use in ("predict", "transform"):
        for error in (NotFittedError, ProjclustError):
            with pytest.raises(error, match="not fitted"):
                getattr(ProjectiveClustering(3, 4), use)(rows())
    with pytest.raises(NotFittedError):
        ProjectiveClustering(3, 4).inverse_transform(rows(), np.zeros(300))


def test_other_input_is_refused_as_a_mistake_of_the_caller() -> None:
    estimator = ProjectiveClustering(3, 4, restarts=1)
    for given, message in (
        (np.zeros(5), "2D array"),
        (np.zeros((0, 12)), "0 sample"),
        (rows().astype(complex), "Complex data not supported"),
        (torch.zeros(9, 9, dtype=torch.complex64), "Complex data not supported"),
        (np.full((300, 12), np.nan), "NaN or infinite entries"),
    ):
        with pytest.raises(ProjclustError, match=message):
            estimator.fit(given)
    for given in (rows(d=9), torch.from_numpy(rows(d=9))):
        with pytest.raises(ProjclustError, match="X has 9 features, but ProjectiveClustering is expecting 12"):
            clone(estimator).fit(rows()).predict(given)
    with pytest.raises(ProjclustError, match="must be numbers"):
        estimator.fit(rows(), sample_weight=["heavy"] * 300)


@pytest.mark.parametrize("labels", [np.zeros(299, int), np.full(300, 3), np.full(300, -1), np.zeros(300)])
def test_labels_that_name_no_clusters_are_refused(labels: np.ndarray) -> None:
    fitted = ProjectiveClustering(3, 4, restarts=1).fit(rows())
    for given in (labels, torch.from_numpy(labels), labels.tolist()):
        with pytest.raises(ProjclustError, match="300 whole numbers from 0 to 2"):
            fitted.transform(rows(), given)
        with pytest.raises(ProjclustError, match="300 whole numbers from 0 to 2"):
            fitted.inverse_transform(fitted.coefficients_, given)
    with pytest.raises(ProjclustError, match="4 coordinates each, not 3"):
        fitted.inverse_transform(fitted.coefficients_[:, :3], fitted.labels_)


def test_it_works_in_a_pipeline_and_survives_pickling() -> None:
    pipeline = make_pipeline(StandardScaler(), ProjectiveClustering(3, 4, random_state=0))
    coordinates = pipeline.fit_transform(rows())
    assert coordinates.shape == (300, 4)
    copy = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(copy.predict(rows()), pipeline.predict(rows()))
    assert pipeline.get_feature_names_out().tolist() == [f"projectiveclustering{number}" for number in range(4)]
