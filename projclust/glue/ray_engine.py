"""Cells as tasks of Ray: every one on a machine that has room for it, run again where a machine is lost.

No file system need be shared. The driver ships the model, the rows of a task and the trained dense models through Ray's
object store, and keeps the rows of results as they come. Ray itself decides where a task runs, runs it again when its
worker or machine is gone, and makes an object again that went with a machine. Results are those of one process with as
many threads: a cell depends on its settings and seed alone.
"""

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator

from projclust.checkpoints.save import found_side_files
from projclust.checkpoints.source import CONFIG, WEIGHTS_INDEX
from projclust.checkpoints.tensors import weight_files
from projclust.errors import OptionError, ProjclustError, ServiceError
from projclust.glue.data import TaskData
from projclust.glue.engine import Engine
from projclust.glue.experiment import PAPER, Bench, Study, baseline_folder, baseline_path, measure, prepare
from projclust.glue.training import Diverged, make_accelerator
from projclust.glue.variants import Variant
from projclust.options import Device
from projclust.results.rows import Row

# How often a task runs again whose worker or machine was lost.
_RETRIES = 5
# Cells that may wait for each that can run: rows and dense models of theirs lie in the object store.
_CELLS_AHEAD = 2
# Seconds until an address counts as one where nothing listens.
_PATIENCE = 10

Files = dict[str, bytes]
"""A folder: the content of each file by its name in it."""


@dataclass(frozen=True)
class Group:
    """The cells of one task and seed that are yet to be measured: variants, and whether each is scored in training."""

    data: TaskData
    seed: int
    variants: list[tuple[Variant, bool]]


@dataclass
class _Shipped:
    """A study without what only its driver has, with the model's files, under a name that no other driver has."""

    name: str
    study: Study
    files: Files
    device: Device
    threads: int


@contextlib.contextmanager
def connected(engine: Engine) -> Iterator[None]:
    """A connection to the cluster inside.

    Raises:
        ProjclustError: Ray is not installed.
        ServiceError: no cluster answers.
    """
    if find_spec("ray") is None:
        raise ProjclustError("engine ray needs the package ray: pip install projclust[ray]")
    import ray

    _check_answers(engine)
    try:
        # Without an address Ray would look for a cluster that this machine once had.
        ray.init(engine.address or "local", log_to_driver=False, logging_level="ERROR", configure_logging=False)
    # Ray ends the process where what once listened at an address is gone.
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
        raise _no_cluster(engine, error) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(engine: Engine) -> None:
    """Refuse an address where nothing listens, for which Ray itself waits minutes."""
    host, _, port = (engine.address or "").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(engine, error) from None


def _no_cluster(engine: Engine, error: BaseException) -> ServiceError:
    reason = " ".join(str(error).split())[:200]
    return ServiceError(f"no Ray cluster answers at {engine.address}: {reason}")


def measure_by_ray(study: Study, groups: Iterator[Group], engine: Engine, device: Device) -> Iterator[Row]:
    """Measure cells on the cluster that is connected, and give their rows in the order in which they come.

    Raises:
        ProjclustError: a cell met a user's mistake, or was lost again and again.
    """
    import ray

    plain = replace(study, accelerator=None, stage=_silent, step=_silent)
    name = f"projclust-{uuid4().hex}"
    shipped = ray.put(_Shipped(name, plain, model_files(study.checkpoint), device, engine.cpus))
    needs = {"num_cpus": engine.cpus, "num_gpus": engine.gpus, "max_retries": _RETRIES}
    train, cell = ray.remote(**needs)(_dense_model), ray.remote(**needs)(_cell)
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1) // engine.cpus))
    pending: set[Any] = set()
    for group in groups:
        while len(pending) >= _CELLS_AHEAD * at_once:
            yield from _finished(pending)
        data = ray.put(group.data)
        # Dense models first: all variants of a task and seed start from the same one.
        dense = train.remote(shipped, data, group.seed) if study.protocol == PAPER else None
        pending |= {cell.remote(shipped, data, dense, group.seed, *variant) for variant in group.variants}
    while pending:
        yield from _finished(pending)


def _finished(pending: set[Any]) -> list[Row]:
    """The rows of the cells that are done, at least one, which are no longer pending."""
    import ray

    done, _ = ray.wait(list(pending), num_returns=1)
    rows = []
    for reference in done:
        pending.discard(reference)
        try:
            rows.append(ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ProjclustError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise ServiceError(f"a cell was lost {_RETRIES + 1} times: {reason}") from None
    return rows


def _silent(*_: object) -> None:
    """Nobody watches a cell on another machine."""


@dataclass
class _Worker:
    """What a worker keeps between the tasks that it runs for one driver: its accelerator, and tokenized rows."""

    accelerator: Accelerator
    benches: dict[str, Bench] = field(default_factory=dict)


_WORKERS: dict[str, _Worker] = {}


def _worker(shipped: _Shipped) -> _Worker:
    if shipped.name not in _WORKERS:
        torch.set_num_threads(shipped.threads)
        has_gpu = torch.cuda.is_available()
        if shipped.device == Device.CUDA and not has_gpu:
            raise OptionError("`device` cuda: a machine of the cluster shows its cells no GPU: give `gpus_per_cell`")
        cpu = shipped.device == Device.CPU or not has_gpu
        _WORKERS[shipped.name] = _Worker(make_accelerator(shipped.study.settings, cpu))
    return _WORKERS[shipped.name]


@contextlib.contextmanager
def _bench(shipped: _Shipped, data: TaskData) -> Iterator[Bench]:
    """The task made ready, with the model in a folder that lasts as long as the task of Ray."""
    worker = _worker(shipped)
    with tempfile.TemporaryDirectory(prefix="projclust-") as place:
        folder = Path(place)
        write_files(shipped.files, folder / "model")
        (folder / "out").mkdir()
        study = replace(
            shipped.study, checkpoint=folder / "model", output=folder / "out", accelerator=worker.accelerator
        )
        if data.sha256 not in worker.benches:
            worker.benches.clear()  # the rows of one task are kept
            worker.benches[data.sha256] = prepare(study, data)
        yield replace(worker.benches[data.sha256], study=study, diverged={})


def _dense_model(shipped: _Shipped, data: TaskData, seed: int) -> Files | str:
    """Task: train the dense model; its folder's files, or how its training diverged."""
    with _bench(shipped, data) as bench:
        try:
            return _read(baseline_folder(bench, seed))
        except Diverged as error:
            return str(error)


def _cell(
    shipped: _Shipped, data: TaskData, dense: Files | str | None, seed: int, variant: Variant, training_score: bool
) -> Row:
    """Task: measure one cell, from the dense model that another task trained."""
    with _bench(shipped, data) as bench:
        if isinstance(dense, str):
            bench.diverged[seed] = dense
        elif dense is not None:
            write_files(dense, baseline_path(bench, seed))
        return measure(bench, variant, seed, training_score)


def model_files(folder: Path) -> Files:
    """What a model is loaded from; a folder of the Hub may hold much else."""
    paths = [folder / CONFIG, *weight_files(folder), *found_side_files(folder)]
    paths += [folder / WEIGHTS_INDEX] if (folder / WEIGHTS_INDEX).is_file() else []
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _read(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_files(files: Files, folder: Path) -> None:
    """Write a folder again."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
