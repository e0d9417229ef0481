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
from projclust.coding.baselines import Baseline, baseline_table
from projclust.coding.fit import Progress as RowProgress
from projclust.coding.predict import check_budget
from projclust.coding.stored import MOST_CLASSES
from projclust.errors import ProjclustError
from projclust.hf.card import compressed_card
from projclust.hf.checkpoint import (
    Loaded,
    bytes_to_save,
    copy_side_files,
    embedding_tensors,
    local_folder,
    save_checkpoint,
    stored_tensors,
)
from projclust.hf.compress import Compression, compress_embedding
from projclust.hf.config import AUTO, INTEGER_CODES, Metric, ProjClustConfig, check_fit, stored_dtype
from projclust.hf.folder import check_space, check_target, new_folder, write_options
from projclust.hf.headers import StoredTensor
from projclust.hf.hub import check_can_push, push_folder, repo_url
from projclust.hf.swap import dense_parts, input_embedding
from projclust.planning import (
    bytes_for_bits,
    parameter_count,
    parse_size,
    rank_for_bytes,
    rank_for_ratio,
    stored_bytes,
)
from projclust.report.plots import plot_codes, plot_fit

from .common import (
    Processes,
    check_weights,
    choose_device,
    chosen_weights,
    load_dense,
    processes,
    versions,
    weights_exponent,
)

REPORT_FILE = "projclust_report.json"
PLOT_FILE = "projclust_fit.png"
DEFAULT_K = 5


@dataclass(frozen=True)
class CompressOptions:
    """The options of `projclust compress`; see its --help. What is None is settled by the job."""

    model: str
    k: int | None = None
    j: int | None = None
    ratio: float | None = None
    bits: float | None = None
    size: str | None = None
    method: str = Method.PROJECTIVE.value
    ranks: str = Ranks.EQUAL.value
    loss: str = Loss.L2.value
    affine: bool = False
    weights: str | None = None
    weights_exponent: float | None = None
    codes: str | None = None
    metric: str = Metric.MODEL.value
    restarts: int = 16
    max_iter: int = 100
    tol: float = 1e-3
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
    """What a caller may watch: what begins, each step of the fit, rows that were coded, what the user should know, and
    that an upload begins, of which the Hub client shows its own bars.
    """

    stage: Callable[[str], None] = lambda text: None
    step: Progress = lambda restart, step, cost: None
    rows: RowProgress = lambda done, total: None
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
    source, loaded, name = load_dense(options.model, options.revision, options.seed, hooks.stage)
    model, missing = loaded.model, loaded.missing
    if loaded.lost:
        hooks.warn(f"{len(loaded.lost)} tensors are no part of the model and are left out: {loaded.lost[0]}, ...")
    if missing:
        hooks.warn(f"{len(missing)} parameters are not in the checkpoint and were newly initialised: {missing[0]}, ...")
    table = input_embedding(model)[1].weight.detach()
    weights, sample_weight = chosen_weights(
        options.weights, options.codes, source, len(table), options.weights_exponent, hooks.stage, hooks.warn
    )
    options = replace(options, weights=weights)
    config = _config(options, table)
    report = _plan(options, config, loaded, name, table, stored_tensors(source), team.device)
    if options.dry_run:
        return report | {"pushed_to": None}
    check_space(output, report["model_bytes_stored"])

    hooks.stage(_what_is_fitted(config, *table.shape))
    svd = ProjectiveClustering(1, 1, method=Method.SVD, device=team.device, process_group=team.group)
    svd_errors = _error_by_rank(svd.fit(table, sample_weight).spectra_[0])
    fit_started = time.perf_counter()
    compression = compress_embedding(
        model, config, sample_weight, team.device, hooks.step, team.group, encoding=hooks.rows
    )
    fit_seconds = time.perf_counter() - fit_started
    report |= _fitted(compression, report["params_dense"], fit_seconds)
    bits = 8 * compression.coded.shape.bytes / table.numel() if compression.coded is not None else None
    if config.codes == AUTO and bits is not None and bits < 0.99 * (config.bits or 0) and bits > 8:
        hooks.warn(f"codes have at most 8 bits: {bits:.2f} bits a weight are all that they can use")
    report["same_size_svd"] = _same_size_svd(report, svd_errors, table, sample_weight, bits)
    if not team.is_main:
        return report | {"pushed_to": None}

    hooks.stage(f"writing {output}")
    with new_folder(output, options.overwrite) as folder:
        copy_side_files(source, folder)
        save_checkpoint(loaded, folder)
        written = stored_tensors(folder)
        report["model_bytes_stored"] = sum(tensor.bytes for tensor in written.values())
        stored_embedding = embedding_tensors(written, name)
        report["bytes_stored"] = sum(tensor.bytes for tensor in stored_embedding.values())
        report["parts"] = {key.rpartition(".")[2]: t.bytes for key, t in sorted(stored_embedding.items())}
        report["bits_per_weight"] = 8 * report["bytes_stored"] / report["params_dense"]
        report["total_seconds"] = round(time.perf_counter() - started, 3)
        report["peak_memory_bytes"] = _peak_memory(team.device)
        # Of another loss the spectra are of reweighted rows, which is no error of the table.
        clustering = compression.clustering
        if clustering is None:
            plot_codes(folder / PLOT_FILE, report)
        else:
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
    targets = {name: getattr(options, name) for name in ("j", "ratio", "bits", "size")}
    if sum(value is not None for value in targets.values()) != 1:
        raise ProjclustError("give exactly one of --j, --ratio, --bits and --size")
    codes = options.codes
    if codes is None and (options.bits is not None or options.size is not None):
        codes = AUTO
    stored_dtype(codes, torch.float64)  # whether there are such codes; the model's dtype comes later
    if options.ratio is not None and not 0 < options.ratio < 1:
        raise ProjclustError(f"--ratio must lie between 0 and 1 (0.4 takes 40% off), not {options.ratio:g}")
    if options.bits is not None and not 0 < options.bits < 32:
        raise ProjclustError(f"--bits must lie between 0 and 32, not {options.bits:g}")
    if options.size is not None:
        parse_size(options.size)
    if options.weights is not None:
        check_weights(options.weights)
    k = options.k
    if options.method == Method.SVD.value:
        if k not in (None, 1):
            raise ProjclustError(f"--method svd is one subspace: drop --k {k}")
        k = 1
    if k is not None and k < 1:
        raise ProjclustError(f"--k must be at least 1, not {k}")
    k = DEFAULT_K if k is None else k
    check_fit(options.method, k, options.ranks, options.loss)
    if codes == AUTO:
        _check_auto(options)
    if codes in INTEGER_CODES and k > MOST_CLASSES:
        raise ProjclustError(f"--codes {codes} takes at most {MOST_CLASSES} subspaces, not {k}")
    if options.push_to_hub is not None:
        repo_url(options.push_to_hub)
    elif options.private:
        raise ProjclustError("--private is about the repository of --push-to-hub: give both or neither")
    folder = local_folder(options.model)
    name = Path(options.model if folder is None else os.path.abspath(folder)).name
    output = f"{name}-projclust" if options.output is None else options.output
    return replace(options, k=k, codes=codes, output=output)


def _check_auto(options: CompressOptions) -> None:
    """Refuse what codes "auto" choose themselves."""
    default = CompressOptions(options.model)
    for name in ("k", "j", "method", "ranks", "loss", "affine", "restarts", "max_iter", "tol"):
        if getattr(options, name) != getattr(default, name):
            flag = name.replace("_", "-")
            raise ProjclustError(f"--codes auto chooses ranks and codes itself: drop --{flag}, or name other --codes")


def _config(options: CompressOptions, table: Tensor) -> ProjClustConfig:
    """The configuration for a table, with the rank or bits that meet the target."""
    n, d = table.shape
    k, codes = int(options.k or 0), options.codes
    budget = None
    if options.bits is not None:
        budget = bytes_for_bits(options.bits, n, d)
    elif options.size is not None:
        budget = parse_size(options.size)
    more: dict[str, Any] = {"weights": str(options.weights).partition(":")[0]}
    exponent = weights_exponent(str(options.weights), options.weights_exponent)
    if exponent is not None:
        more["weights_exponent"] = exponent
    if codes == AUTO:
        if options.ratio is not None:
            budget = int((1 - options.ratio) * table.numel() * table.element_size())
        assert budget is not None
        bits = 8 * budget / (n * d)
        check_budget(budget, n, d)
        return ProjClustConfig(codes=AUTO, seed=options.seed, bits=bits, metric=options.metric, **more)
    if k > n:
        raise ProjclustError(f"k={k} subspaces need at least as many rows, but the embedding has {n}")
    if budget is not None:
        j = rank_for_bytes(budget, n, d, k, codes or _dtype_name(table.dtype), options.affine, options.ranks)
    elif options.ratio is not None:
        j = rank_for_ratio(options.ratio, n, d, k, options.affine)
    else:
        j = int(options.j or 0)
    if not 1 <= j < d:
        raise ProjclustError(f"the rank j={j} must be at least 1 and less than the embedding's width {d}")
    return ProjClustConfig(
        k,
        j,
        options.affine,
        options.method,
        codes,
        options.seed,
        options.restarts,
        options.max_iter,
        options.tol,
        options.ranks,
        options.loss,
        **more,
    )


def _what_is_fitted(config: ProjClustConfig, n: int, d: int) -> str:
    if config.codes == AUTO:
        return f"fitting codes of {config.bits:g} bits a weight to {n} x {d}"
    equal = config.ranks == Ranks.EQUAL.value
    rank = f"rank {config.rank}" if equal else f"unequal ranks for {config.rank}"
    return f"fitting {config.n_clusters} subspaces of {rank} to {n} x {d}"


def _plan(
    options: CompressOptions,
    config: ProjClustConfig,
    loaded: Loaded,
    name: str,
    table: Tensor,
    source: dict[str, StoredTensor],
    device: torch.device,
) -> dict[str, Any]:
    """The report as far as it is known before the fit; bytes stored are foreseen here and measured once written."""
    n, d = table.shape
    auto = config.codes == AUTO
    codes = config.codes or _dtype_name(table.dtype)
    stored_dtype(config.codes, table.dtype)  # whether they suit the model's
    k, j = (None, None) if auto else (config.n_clusters, config.rank)
    if k is None or j is None:
        parameters, bytes_stored = None, bytes_for_bits(config.bits or 0, n, d)
    else:
        parameters = parameter_count(n, d, k, j, config.affine)
        bytes_stored = stored_bytes(n, d, k, j, codes, config.affine)
    return {
        "model": options.model,
        "method": options.method,
        "k": k,
        "j": j,
        "loss": options.loss,
        "affine": config.affine,
        "n": n,
        "d": d,
        "seed": options.seed,
        "weights": str(options.weights).partition(":")[0],
        "weights_exponent": getattr(config, "weights_exponent", None),
        "codes": codes,
        "metric": config.metric if auto else None,
        "device": str(device),
        "params_dense": n * d,
        "params_stored": parameters,
        "compression_rate": None if parameters is None else 1 - parameters / (n * d),
        "bytes_dense": sum(tensor.bytes for tensor in embedding_tensors(source, name).values()),
        "bytes_stored": bytes_stored,
        "bits_per_weight": 8 * bytes_stored / (n * d),
        "relative_error": None,
        "weighted_relative_error": None,
        "cluster_sizes": None,
        "ranks": None if auto or options.ranks != Ranks.EQUAL.value else [j] * config.n_clusters,
        "row_bytes": None,
        "parts": None,
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
        "same_size_svd": None,
    }


def _fitted(compression: Compression, dense: int, seconds: float) -> dict[str, Any]:
    """What the fit adds to the report."""
    config, clustering, coded = compression.config, compression.clustering, compression.coded
    report: dict[str, Any] = {
        "k": config.n_clusters,
        "j": config.rank,
        "affine": config.affine,
        "params_stored": compression.parameters,
        "compression_rate": 1 - compression.parameters / dense,
        "relative_error": compression.relative_error,
        "weighted_relative_error": compression.weighted_relative_error,
        "fit_seconds": round(seconds, 3),
    }
    if clustering is not None:
        report |= {
            "ranks": clustering.ranks_,
            "cluster_sizes": torch.bincount(clustering.labels_, minlength=config.n_clusters).tolist(),
            "iterations": clustering.n_iter_,
            "cost_history": clustering.cost_history_,
        }
    if coded is not None:
        report |= {
            "ranks": coded.ranks,
            "cluster_sizes": torch.bincount(coded.classes, minlength=coded.shape.classes).tolist(),
            "row_bytes": coded.row_bytes,
        }
    return report


def _same_size_svd(
    report: dict[str, Any],
    svd_errors: list[float],
    table: Tensor,
    sample_weight: Tensor | None,
    bits: float | None,
) -> dict[str, Any]:
    """SVD in as many parameters, or where coefficients are coded in as many bytes of int8 or int4 codes."""
    if report["codes"] not in (*INTEGER_CODES, AUTO):
        rank = min(report["params_stored"] // (report["n"] + report["d"]), report["d"] - 1)
        return {"j": rank, "codes": report["codes"], "weighted_relative_error": svd_errors[rank]}
    baseline = Baseline.SVD_INT8 if report["codes"] == "int8" else Baseline.SVD_INT4
    codes = "int8" if report["codes"] == "int8" else "int4"
    try:
        found = baseline_table(baseline, table, bits, sample_weight)
    except ProjclustError:  # so small a size has no SVD
        return {"j": 0, "codes": codes, "weighted_relative_error": 1.0}
    lost, total = torch.zeros(2, dtype=torch.float64)
    weight = torch.ones(len(table), dtype=torch.float64) if sample_weight is None else sample_weight.cpu()
    for rows in torch.arange(len(table)).split(4096):
        exact = table[rows].double().cpu()
        lost += weight[rows] @ (found.table[rows].cpu() - exact).square().sum(1)
        total += weight[rows] @ exact.square().sum(1)
    return {"j": None, "codes": codes, "weighted_relative_error": float(lost / total)}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
