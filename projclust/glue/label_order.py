"""Whether a classifier that does not name its labels has them in a task's order, by rows whose labels are known."""

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from projclust.errors import ProjclustError
from projclust.glue.tasks import Task

ROWS_OF_ORDER = 512  # so many are enough
# So much larger must the mean recall be in another order; by chance it is where rows are few.
_MARGIN, _ROWS_OF_MARGIN = 0.2, 9.0


def check_order(model: str, task: Task, predictions: Tensor, labels: Tensor) -> None:
    """Refuse a head whose labels stand in another order than the task's, going by what it says of some rows."""
    if order := better_order(predictions, labels, task.labels):
        raise ProjclustError(
            f"the head of {model} fits {task.name} far better with its labels in the order {', '.join(order)}: "
            f"name them so under id2label in its config.json"
        )


def better_order(predictions: Tensor, labels: Tensor, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the order of a head's labels that fits far better than the task's own, if there is one.

    Orders are compared by the mean over classes of the share of their rows that is recognised: a head that gives every
    row the same label, as an untrained one may, is as good in every order.

    Args:
        predictions: the numbers (rows,) that the head gives.
        labels: the right numbers (rows,) in the task's order.
        names: the names of the task's labels.

    Returns:
        The names of the head's outputs from the first on; None where the task's order is as good.

    Example::

        better_order(torch.tensor([1, 0, 1] * 40), torch.tensor([0, 1, 0] * 40), ("no", "yes"))  # ("yes", "no")
    """
    classes = len(names)
    counts = torch.zeros(classes, classes, dtype=torch.float64)
    counts.index_put_((labels, predictions), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)

    def recall(order: tuple[int, ...]) -> float:
        """The mean recall where output `i` of the head stands for the task's label `order[i]`."""
        return float(shares[list(order), range(classes)].sum()) / classes

    own = tuple(range(classes))
    best = max(permutations(own), key=recall)
    margin = max(_MARGIN, (_ROWS_OF_MARGIN / max(len(labels), 1)) ** 0.5)
    return tuple(names[label] for label in best) if recall(best) > recall(own) + margin else None
