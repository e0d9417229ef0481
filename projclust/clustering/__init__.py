"""Projective clustering of the rows of a matrix: torch only, knows nothing of language models.

`projclust.clustering.fit` is the function, `projclust.clustering.estimator` the scikit-learn estimator over it. The
estimator is loaded on first use, so that whoever needs only the function does not wait for scikit-learn.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from projclust.clustering.estimator import ProjectiveClustering

__all__ = ["ProjectiveClustering"]


def __getattr__(name: str) -> Any:
    if name != "ProjectiveClustering":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from projclust.clustering.estimator import ProjectiveClustering

    return ProjectiveClustering
