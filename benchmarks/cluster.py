"""Independent measurements one after the other, or as tasks of Ray; results come in the order of what is measured.

Machines of a cluster need projclust and this repository at the same place; models and data travel to them.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from projclust.glue.engine import Engine
from projclust.glue.ray_engine import connected

GivenT = TypeVar("GivenT")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# How often one is measured again whose worker or machine was lost.
_RETRIES = 5


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """`--engine`, for `each`."""
    parser.add_argument(
        "--engine", default=None, metavar="ray[:ADDRESS]", help="Measure on a cluster, one core for each measurement."
    )


def each(
    engine: str | None, function: Callable[[GivenT, ItemT], ResultT], given: GivenT, items: Iterable[ItemT]
) -> Iterator[ResultT]:
    """What a function makes of each item and of what all of them are given, here or on a cluster of Ray.

    Raises:
        ProjclustError: the engine is none, or no cluster answers; whatever the function raises, here or there.
    """
    if engine is None:
        yield from (function(given, item) for item in items)
        return
    with connected(Engine.parse(engine, 1, 0.0)):
        import ray

        shared, task = ray.put(given), ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
        for reference in [task.remote(shared, item) for item in items]:
            yield ray.get(reference)
