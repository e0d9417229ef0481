"""The job behind `projclust compress`: a dense checkpoint in, a compressed checkpoint folder out."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projclust.clustering import Method, ProjectiveClustering
from projclust.clustering.estimator import Progress
from projclust.clustering.ranks import Ranks
from projclust.clustering.robust import Loss
from projclust.errors import CheckpointError, ProjclustError
from projclust.hf.card import compressed_card
from projclust.hf.checkpoint import (
    CONFIG,
    Loaded,
    bytes_to_save,
    copy_side_files,
    embedding_tensors,
    load_checkpoint,
    local_folder,
    quantization_method,
    read_json,
    resolve_checkpoint,
    save_checkpoint,
    stored_tensors,
)
from projclust.hf.compress import compress_embedding
from projclust.hf.config import ProjClustConfig, check_fit, stored_dtype
from projclust.hf.folder import check_space, check_target, new_folder, write_options
from projclust.hf.headers import StoredTensor
from projclust.hf.hub import check_can_push, push_folder, repo_url
from projclust.hf.swap import Shape, dense_parts, input_embedding
from projclust.planning import parameter_count, rank_for_ratio
from projclust.report.plots import plot_fit

from .common import Processes, check_weights, choose_device, processes, read_weights, versions

REPORT_FILE = "projclust_report.json"
PLOT_FILE = "projclust_fit.png"
DEFAULT_K = 5


@dataclass(frozen=True)
class CompressOptions:
    """The options of `projclust compress`; see its --help. `k`, `j` and `output` of None are settled by the job."""

    model: str
    k: int | None = None
    j: int | None = None
    ratio: float | None = None
    method: str = Method.PROJECTIVE.value
    ranks: str = Ranks.EQUAL.value
    loss: str = Loss.L2.value
    affine: bool = False
    weights: str = "uniform"
    codes: str | None = None
    restarts: int = 8
    max_iter: int = 100
    tol: float = 1e-4
    seed: int = 0
    device: str = "auto"
    output: str | None = None
    overwrite: bool = False
    push_to_hub: str | None = None
    private: bool = False
    dry_run: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class Hooks:
    """What a caller may watch: what begins, each step of the fit, what the user should know, and that an upload begins,
    of which the Hub client shows its own bars.
    """

    stage: Callable[[str], None] = lambda text: None
    step: Progress = lambda restart, step, cost: None
    warn: Callable[[str], None] = lambda text: None
    upload: Callable[[], None] = lambda: None


def compress_checkpoint(options: CompressOptions, hooks: Hooks | None = None) -> dict[str, Any]:
    """Compress a checkpoint and write the result's folder.

    Under torchrun or `accelerate launch` all processes call this, share the fit, and the first one writes.

    Returns:
        the report, as in projclust_report.json, and "pushed_to", the address of the repository or None. With `dry_run`
        nothing is fitted or written, what only a fit can tell is None, and of adaptive ranks the sizes are the most
        that they can come to. In processes other than the first what is known only once it is written is as foreseen.

    Raises:
        ProjclustError: for every mistake and obstacle a user can mend; nothing is left behind, but for the finished
            folder when only the push failed.
        ServiceError: the same, of the Hub and the network.
    """
    started = time.perf_counter()
    hooks = hooks or Hooks()
    options = _settled(options)
    output = Path(str(options.output))
    if not options.dry_run:
        check_target(output, options.overwrite, local_folder(options.model))
        if options.push_to_hub is not None:
            check_can_push(options.push_to_hub)
    with processes(choose_device(options.device)) as team:
        return _compress(options, output, hooks, team, started)


def _compress(options: CompressOptions, output: Path, hooks: Hooks, team: Processes, started: float) -> dict[str, Any]:
    source = resolve_checkpoint(options.model, options.revision)
    hooks.stage(f"reading {options.model}")
    method = quantization_method(read_json(source / CONFIG))
    if method is not None:
        hint = "projclust expand makes it dense again" if method == "projclust" else "start from the dense model"
        raise ProjclustError(f"{options.model} is compressed already ({method}): {hint}")
    torch.manual_seed(options.seed)  # for parameters the checkpoint lacks
    loaded = load_checkpoint(source)
    model, missing = loaded.model, loaded.missing
    name, embedding = input_embedding(model)
    if f"{name}.weight" in missing:
        raise CheckpointError(f"{options.model} holds no weights for its embedding {name}")
    if loaded.lost:
        hooks.warn(f"{len(loaded.lost)} tensors are no part of the model and are left out: {loaded.lost[0]}, ...")
    if missing:
        hooks.warn(f"{len(missing)} parameters are not in the checkpoint and were newly initialised: {missing[0]}, ...")
    table = embedding.weight.detach()
    shape = _shape(options, *table.shape)
    sample_weight = read_weights(options.weights, source, shape.n)
    report = _plan(options, shape, loaded, name, table, stored_tensors(source), team.device)
    if options.dry_run:
        return report | {"pushed_to": None}
    check_space(output, report["model_bytes_stored"])

    rank = f"rank {shape.j}" if options.ranks == Ranks.EQUAL.value else f"unequal ranks for {shape.j}"
    hooks.stage(f"fitting {shape.k} subspaces of {rank} to {shape.n} x {shape.d}")
    config = ProjClustConfig(
        shape.k,
        shape.j,
        shape.affine,
        options.method,
        options.codes,
        options.seed,
        options.restarts,
        options.max_iter,
        options.tol,
        options.ranks,
        options.loss,
        weights=options.weights.partition(":")[0],
    )
    svd = ProjectiveClustering(1, 1, method=Method.SVD, device=team.device, process_group=team.group)
    svd_errors = _error_by_rank(svd.fit(table, sample_weight).spectra_[0])
    fit_started = time.perf_counter()
    compression = compress_embedding(model, config, sample_weight, team.device, hooks.step, team.group)
    fit_seconds = time.perf_counter() - fit_started
    clustering = compression.clustering
    svd_rank = _rank_of_svd(compression.parameters, shape)
    report |= {
        "params_stored": compression.parameters,
        "compression_rate": 1 - compression.parameters / report["params_dense"],
        "same_size_svd": {"j": svd_rank, "weighted_relative_error": svd_errors[svd_rank]},
        "ranks": clustering.ranks_,
        "relative_error": compression.relative_error,
        "weighted_relative_error": compression.weighted_relative_error,
        "cluster_sizes": torch.bincount(clustering.labels_, minlength=shape.k).tolist(),
        "iterations": clustering.n_iter_,
        "cost_history": clustering.cost_history_,
        "fit_seconds": round(fit_seconds, 3),
    }
    if not team.is_main:
        return report | {"pushed_to": None}

    hooks.stage(f"writing {output}")
    with new_folder(output, options.overwrite) as folder:
        copy_side_files(source, folder)
        save_checkpoint(loaded, folder)
        written = stored_tensors(folder)
        report["model_bytes_stored"] = sum(tensor.bytes for tensor in written.values())
        report["bytes_stored"] = sum(tensor.bytes for tensor in embedding_tensors(written, name).values())
        report["bits_per_weight"] = 8 * report["bytes_stored"] / report["params_dense"]
        report["total_seconds"] = round(time.perf_counter() - started, 3)
        report["peak_memory_bytes"] = _peak_memory(team.device)
        # Of another loss the spectra are of reweighted rows, which is no error of the table.
        errors = _error_by_rank(clustering.spectra_) if options.loss == Loss.L2.value else None
        plot_fit(folder / PLOT_FILE, report, errors, svd_errors)
        card = compressed_card(report, source, type(model).__name__)
        (folder / "README.md").write_text(card, encoding="utf-8")
        # A run with the recorded options is for the same folder again, which is no reason to publish it.
        write_options(folder, replace(options, push_to_hub=None, private=False))
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report | {"pushed_to": _pushed_to(options, output, hooks)}


def _settled(options: CompressOptions) -> CompressOptions:
    """Check what can be checked without the model, and fill in the defaults that depend on other options."""
    if (options.j is None) == (options.ratio is None):
        raise ProjclustError("give exactly one of --j and --ratio")
    stored_dtype(options.codes, torch.float64)  # whether there are such codes; the model's dtype comes later
    if options.ratio is not None and not 0 < options.ratio < 1:
        raise ProjclustError(f"--ratio must lie between 0 and 1 (0.4 takes 40% off), not {options.ratio:g}")
    check_weights(options.weights)
    k = options.k
    if options.method == Method.SVD.value:
        if k not in (None, 1):
            raise ProjclustError(f"--method svd is one subspace: drop --k {k}")
        k = 1
    if k is not None and k < 1:
        raise ProjclustError(f"--k must be at least 1, not {k}")
    check_fit(options.method, DEFAULT_K if k is None else k, options.ranks, options.loss)
    if options.push_to_hub is not None:
        repo_url(options.push_to_hub)
    elif options.private:
        raise ProjclustError("--private is about the repository of --push-to-hub: give both or neither")
    folder = local_folder(options.model)
    name = Path(options.model if folder is None else os.path.abspath(folder)).name
    return replace(
        options,
        k=DEFAULT_K if k is None else k,
        output=f"{name}-projclust" if options.output is None else options.output,
    )


def _shape(options: CompressOptions, n: int, d: int) -> Shape:
    k = int(options.k or 0)
    if k > n:
        raise ProjclustError(f"k={k} subspaces need at least as many rows, but the embedding has {n}")
    j = int(options.j or 0) if options.ratio is None else rank_for_ratio(options.ratio, n, d, k, options.affine)
    if not 1 <= j < d:
        raise ProjclustError(f"the rank j={j} must be at least 1 and less than the embedding's width {d}")
    return Shape(n, d, k, j, options.affine)


def _plan(
    options: CompressOptions,
    shape: Shape,
    loaded: Loaded,
    name: str,
    table: Tensor,
    source: dict[str, StoredTensor],
    device: torch.device,
) -> dict[str, Any]:
    """The report as far as it is known before the fit; bytes stored are foreseen here and measured once written."""
    n, d, k, j = shape.n, shape.d, shape.k, shape.j
    stored = parameter_count(n, d, k, j, shape.affine)
    ids = n * (1 if k <= 256 else 4)
    dtype = stored_dtype(options.codes, table.dtype)
    bytes_stored = stored * dtype.itemsize + ids
    return {
        "model": options.model,
        "method": options.method,
        "k": k,
        "j": j,
        "loss": options.loss,
        "affine": shape.affine,
        "n": n,
        "d": d,
        "seed": options.seed,
        "weights": options.weights.partition(":")[0],
        "codes": str(dtype).removeprefix("torch."),
        "device": str(device),
        "params_dense": n * d,
        "params_stored": stored,
        "compression_rate": 1 - stored / (n * d),
        "bytes_dense": sum(tensor.bytes for tensor in embedding_tensors(source, name).values()),
        "bytes_stored": bytes_stored,
        "bits_per_weight": 8 * bytes_stored / (n * d),
        "relative_error": None,
        "weighted_relative_error": None,
        "cluster_sizes": None,
        "ranks": [j] * k if options.ranks == Ranks.EQUAL.value else None,
        "iterations": None,
        "cost_history": None,
        "restarts": options.restarts,
        "fit_seconds": None,
        "total_seconds": None,
        "peak_memory_bytes": None,
        "output": str(options.output),
        "versions": versions(),
        "embedding": name,
        "model_bytes_dense": sum(tensor.bytes for tensor in source.values()),
        "model_bytes_stored": bytes_to_save(loaded) - table.numel() * table.element_size() + bytes_stored,
        "dense_parts": [asdict(part) for part in dense_parts(loaded.model)],
        "same_size_svd": {"j": _rank_of_svd(stored, shape), "weighted_relative_error": None},
    }


def _rank_of_svd(parameters: int, shape: Shape) -> int:
    """The largest rank at which one subspace has no more than `parameters`."""
    return min(parameters // (shape.n + shape.d), shape.d - 1)


def _pushed_to(options: CompressOptions, output: Path, hooks: Hooks) -> str | None:
    repo = options.push_to_hub
    if repo is None:
        return None
    hooks.upload()
    try:
        return push_folder(output, repo, options.private, hooks.warn).url
    except ProjclustError as error:
        again = f"projclust push {shlex.quote(str(output))} {repo}" + " --private" * options.private
        raise type(error)(f"{output} is written, but not pushed: {error}; `{again}` tries again") from error


def _error_by_rank(spectra: Tensor) -> list[float]:
    """Relative squared error at every rank from 0 to d, from the eigenvalues of the groups' scatter matrices."""
    total = spectra.sum(0) if spectra.dim() == 2 else spectra  # (d,)
    tails = torch.cat([total.flip(0).cumsum(0).flip(0), total.new_zeros(1)])
    return (tails / tails[0].clamp(min=1e-300)).tolist()


def _peak_memory(device: torch.device) -> int | None:
    """Peak bytes on the GPU, or of this process; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
