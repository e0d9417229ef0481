"""The job behind `projclust compress`: a dense checkpoint in, a compressed checkpoint folder out."""

import json
import shlex
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from projclust.checkpoints.card import compressed_card
from projclust.checkpoints.folder import check_space, new_folder, write_options
from projclust.checkpoints.hub import check_can_push, push_folder
from projclust.checkpoints.load import load_tokenizer
from projclust.checkpoints.save import (
    bytes_as,
    bytes_to_save,
    check_dtype,
    copy_side_files,
    save_checkpoint,
    side_files,
    store_as,
)
from projclust.checkpoints.source import REPORT_FILE
from projclust.checkpoints.tensors import embedding_tensors, stored_tensors
from projclust.clustering.fit import ClusteringOptions, fit_clustering
from projclust.errors import OptionError, ProjclustError
from projclust.hf.body import saved_bytes
from projclust.hf.compression import Compression, Run, compress_embedding
from projclust.hf.generation import own_text_of
from projclust.hf.probe import Probe
from projclust.hf.swap import DensePart, dense_parts
from projclust.hf.whole import MOST_BITS, best_recipe, recipes_of_size
from projclust.jobs.by_script import Scripts, errors_by_script
from projclust.jobs.common import SILENT, Dense, Hooks, Processes, choose_device, load_dense, processes, versions
from projclust.jobs.options import CompressOptions
from projclust.options import FLOAT_BYTES, Codes, Loss, Method, Ranks, SizeOf
from projclust.recipes.recipe import Recipe
from projclust.recipes.subspaces import shape_of
from projclust.results.reports import CompressReport, SameSizeSvd
from projclust.shapes import DenseShape, parse_size
from projclust.weights.choose import choose_weights
from projclust.weights.row_weights import RowWeights

PLOT_FILE = "projclust_fit.png"
# Outputs further off are told of. At a cosine of 0.90 (0.35 bits) MiniLM loses about a point of GLUE before training,
# at 0.70 (SVD in int4) 13: docs/sizes.md, docs/results/minilm_bits and minilm_sizes. At a divergence of 1 what a model
# used to say has become e times less probable.
_LOW_COSINE, _HIGH_KL = 0.8, 1.0
# Where codes have all the bits they can, less of what was asked for than this is told of.
_FILLED = 0.99


def compress_checkpoint(options: CompressOptions, hooks: Hooks = SILENT) -> CompressReport:
    """Compress a checkpoint and write the result's folder.

    Under torchrun or `accelerate launch` all processes call this, share the fit, and the first one writes.

    Returns:
        the report. With `dry_run` nothing is fitted or written, what only a fit can tell is None, and the sizes of
        adaptive ranks are upper bounds. Processes other than the first return foreseen sizes instead of those that
        were written.

    Raises:
        ProjclustError: a user's mistake, or an obstacle that a user can mend; nothing is left behind, except for the
            finished folder when only the push failed.
        ServiceError: the Hub or the network failed; the same holds.
    """
    started = time.perf_counter()
    options.check_folder()
    if options.push_to_hub is not None and not options.dry_run:
        check_can_push(options.push_to_hub)
    with processes(choose_device(options.device)) as team:
        return _compress(options, hooks, team, started)


def _compress(options: CompressOptions, hooks: Hooks, team: Processes, started: float) -> CompressReport:
    dense = load_dense(options.model, options.revision, options.recipe.seed, hooks.stage)
    lost, missing, table = dense.loaded.lost, dense.loaded.missing, dense.table
    if lost:
        hooks.warn(f"{len(lost)} tensors are no part of the model and are left out: {lost[0]}, ...")
    if missing:
        hooks.warn(f"{len(missing)} parameters are not in the checkpoint and were newly initialised: {missing[0]}, ...")
    side_files(dense.folder)  # refused before the fit
    dtype = _dtype(options)
    if dtype is not None:
        check_dtype(dense.loaded, table, dtype)
    model, beside = dense.loaded.model, sum(tensor.nbytes for tensor in dense.loaded.extra.values())
    recipes = recipes_of_size(model, options.recipe, beside)
    tokenizer = cache(lambda: load_tokenizer(dense.folder))
    own_text = own_text_of(model, options.recipe.seed)
    weights = choose_weights(options.recipe, tokenizer, len(table), hooks.stage, hooks.warn, own_text)
    scripts = None if options.dry_run else Scripts.of(tokenizer, len(table))
    del tokenizer
    recipe = best_recipe(model, recipes, weights, hooks.stage)
    report = _foreseen(options, recipe, dense, weights, team.device)
    if options.dry_run:
        return report
    check_space(options.folder, report.model_bytes_stored)

    dense_outputs = _dense_outputs(model, weights, recipe.seed)
    hooks.stage(_what_is_fitted(recipe, dense.shape))
    fit_started = time.perf_counter()
    run = Run(team.device, team.group, hooks.step, hooks.rows)
    compression = compress_embedding(model, recipe, weights, run, twin_check=options.twin_check)
    report = replace(_fitted(report, compression), fit_seconds=round(time.perf_counter() - fit_started, 3))
    svd_options = ClusteringOptions(1, 1, method=Method.SVD)
    svd = fit_clustering(table, svd_options, weights.values, device=team.device, process_group=team.group)
    svd_errors = _error_by_rank(svd.spectra[0])
    if dense_outputs is not None:
        outputs = dense_outputs.outputs_now()
        report = replace(report, output_cosine=outputs.cosine, output_kl=outputs.kl)
        _warn_of_outputs(report, hooks)
    _warn_of_unused(options, report, compression, hooks)
    by_script = errors_by_script(
        scripts, weights.values, lambda rows: compression.row_errors.relative(weights.values, rows)
    )
    svd_of_size = _same_size_svd(compression, svd_errors, table, weights.values)
    report = replace(report, same_size_svd=svd_of_size, errors_by_script=by_script)
    if not team.is_main:
        return report

    hooks.stage(f"writing {options.folder}")
    with new_folder(options.folder, options.overwrite) as folder:
        copy_side_files(dense.folder, folder)
        save_checkpoint(dense.loaded if dtype is None else store_as(dense.loaded, dtype), folder)
        report = replace(_written(report, folder, dense), peak_memory_bytes=_peak_memory(team.device))
        report = replace(report, total_seconds=round(time.perf_counter() - started, 3))
        _plot(folder / PLOT_FILE, report, compression, svd_errors)
        card = compressed_card(report, dense.folder, type(model).__name__, options.base_model)
        (folder / "README.md").write_text(card, encoding="utf-8")
        # The options make the same folder again, which is no reason to publish it again.
        settled = replace(options.recipe, k=recipe.k, codes=recipe.codes, weights=weights.name)
        again = replace(options, recipe=settled, output=str(options.folder), push_to_hub=None, private=False)
        write_options(folder, again)
        content = {name: value for name, value in report.as_json().items() if name != "pushed_to"}
        (folder / REPORT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return replace(report, pushed_to=_pushed_to(options, hooks))


def _warn_of_unused(options: CompressOptions, report: CompressReport, compression: Compression, hooks: Hooks) -> None:
    """Tell of bits or bytes that were asked for and that no codes can use."""
    fitted, asked = compression.fitted, options.recipe
    bits = fitted.problem.shape.bits_for_bytes(fitted.bytes)
    if not fitted.recipe.is_auto or bits < _FILLED * MOST_BITS:
        return
    if bits < _FILLED * (fitted.recipe.bits or 0):
        hooks.warn(f"codes have at most {MOST_BITS} bits: {bits:.2f} bits a weight are all that they can use")
    taken = report.model_bytes_stored
    if asked.size_of == SizeOf.MODEL and asked.size is not None and taken < _FILLED * parse_size(asked.size):
        hooks.warn(
            f"codes have at most {MOST_BITS} bits: {taken / 1e6:.2f} MB are all that the model can use of the size"
        )


def _dtype(options: CompressOptions) -> torch.dtype | None:
    """The dtype of the body, where it is asked for."""
    return None if options.dtype is None else getattr(torch, options.dtype)


def _dense_parts(model: PreTrainedModel, dtype: torch.dtype | None) -> list[DensePart]:
    weights = dict(model.named_parameters(remove_duplicate=False))
    return [replace(part, bytes=bytes_as(weights[part.name], dtype)) for part in dense_parts(model)]


def _dense_outputs(model: PreTrainedModel, weights: RowWeights, seed: int) -> Probe | None:
    """What the model says before it is compressed; None of one that takes more than tokens."""
    try:
        return Probe(model, weights.draws, seed)
    except OptionError:
        return None


def _warn_of_outputs(report: CompressReport, hooks: Hooks) -> None:
    """Tell of outputs that have little to do with the dense model's."""
    far = None
    if report.output_kl is not None and report.output_kl > _HIGH_KL:
        far = f"KL divergence of the next token {report.output_kl:.2f}"
    elif report.output_kl is None and report.output_cosine is not None and report.output_cosine < _LOW_COSINE:
        far = f"cosine {report.output_cosine:.2f}"
    if far is not None:
        plan = f"projclust plan {shlex.quote(report.model)} --probe"
        hooks.warn(
            f"the outputs are far from the dense model's ({far}): ask for more bits; `{plan}` shows what sizes have"
        )


def _what_is_fitted(recipe: Recipe, table: DenseShape) -> str:
    if recipe.is_auto:
        return f"fitting codes of {recipe.bits:g} bits a weight to {table.n} x {table.d}"
    rank = f"rank {recipe.j}" if recipe.ranks == Ranks.EQUAL else f"unequal ranks for {recipe.j}"
    return f"fitting {recipe.k} subspaces of {rank} to {table.n} x {table.d}"


def _foreseen(
    options: CompressOptions, recipe: Recipe, dense: Dense, weights: RowWeights, device: torch.device
) -> CompressReport:
    """Return the report as far as it is known before the fit; stored bytes are foreseen here, measured once written."""
    table, model, source = dense.shape, dense.loaded.model, stored_tensors(dense.folder)
    size = recipe.stored_bytes(table)
    factored = None if recipe.is_auto else shape_of(recipe, table)
    return CompressReport(
        model=options.model,
        method=recipe.method,
        k=recipe.k,
        j=recipe.j,
        loss=str(recipe.loss),
        affine=recipe.affine,
        n=table.n,
        d=table.d,
        seed=recipe.seed,
        weights=weights.recorded,
        weights_exponent=weights.exponent,
        codes=str(recipe.codes or table.dtype),
        metric=str(recipe.sensitivity) if recipe.is_auto else None,
        params_dense=table.parameters,
        params_stored=None if factored is None else factored.parameters,
        compression_rate=None if factored is None else factored.compression_rate,
        bytes_dense=sum(tensor.bytes for tensor in embedding_tensors(source, dense.name, dense.tied).values()),
        bytes_stored=size,
        bits_per_weight=table.bits_for_bytes(size),
        ranks=[recipe.j or 0] * (recipe.k or 0) if factored is not None and recipe.ranks == Ranks.EQUAL else None,
        restarts=recipe.restarts,
        output=str(options.folder),
        versions=versions(),
        embedding=dense.name,
        model_bytes_dense=sum(tensor.bytes for tensor in source.values()),
        model_bytes_stored=bytes_to_save(dense.loaded, dense.table, _dtype(options))
        + size
        - saved_bytes(model, recipe.body),
        body=None if recipe.body is None else str(recipe.body),
        dtype=None if options.dtype is None else str(options.dtype),
        # Rounded with the body.
        dense_parts=_dense_parts(model, _dtype(options)) if recipe.body is None else [],
        device=str(device),
        weights_chosen=weights.chosen,
    )


def _fitted(report: CompressReport, compression: Compression) -> CompressReport:
    """Add what the fit tells."""
    config, fitted = compression.config, compression.fitted
    report = replace(
        report,
        k=config.n_clusters,
        j=config.rank,
        affine=config.affine,
        params_stored=fitted.parameters,
        compression_rate=1 - fitted.parameters / fitted.problem.shape.parameters,
        relative_error=compression.errors.plain,
        weighted_relative_error=compression.errors.weighted,
    )
    if (body := compression.body) is not None:
        report = replace(
            report,
            body_bytes_dense=body.bytes_dense,
            body_bytes_stored=body.bytes_stored,
            body_relative_error=body.relative_error,
        )
    clustering, coded = fitted.clustering, fitted.coded
    if clustering is not None:
        groups = torch.bincount(clustering.labels, minlength=config.n_clusters).tolist()
        costs = clustering.cost_history
        ranks = clustering.ranks
        report = replace(report, cluster_sizes=groups, ranks=ranks, iterations=len(costs), cost_history=costs)
    if coded is not None:
        groups = torch.bincount(coded.classes, minlength=coded.shape.classes).tolist()
        report = replace(report, cluster_sizes=groups, ranks=coded.ranks, row_bytes=coded.row_bytes)
    return report


def _written(report: CompressReport, folder: Path, dense: Dense) -> CompressReport:
    """Enter the sizes of what was written."""
    tensors = stored_tensors(folder)
    embedding = embedding_tensors(tensors, dense.name)
    size = sum(tensor.bytes for tensor in embedding.values())
    return replace(
        report,
        model_bytes_stored=sum(tensor.bytes for tensor in tensors.values()),
        bytes_stored=size,
        parts={key.rpartition(".")[2]: tensor.bytes for key, tensor in sorted(embedding.items())},
        bits_per_weight=dense.shape.bits_for_bytes(size),
    )


def _same_size_svd(
    compression: Compression, svd_errors: list[float], table: Tensor, weights: Tensor | None
) -> SameSizeSvd:
    """Return an SVD with as many parameters or, where coefficients are coded, as many bytes of int8 or int4 codes."""
    fitted, shape = compression.fitted, compression.fitted.problem.shape
    codes = str(fitted.recipe.codes or shape.dtype)
    if codes in FLOAT_BYTES:
        rank = min(fitted.parameters // (shape.n + shape.d), shape.d - 1)
        return SameSizeSvd(rank, codes, svd_errors[rank])
    codes = "int8" if codes == Codes.INT8 else "int4"
    try:
        baseline = Recipe(method=f"svd-{codes}", bits=shape.bits_for_bytes(fitted.bytes)).fit(table, weights)
    except ProjclustError:  # so small a size has no SVD
        return SameSizeSvd(0, codes, 1.0)
    return SameSizeSvd(None, codes, baseline.errors.weighted)


def _plot(path: Path, report: CompressReport, compression: Compression, svd_errors: list[float]) -> None:
    from projclust.report.plots import plot_codes, plot_fit  # matplotlib is slow to import

    clustering = compression.fitted.clustering
    if clustering is None:
        plot_codes(path, report)
        return
    # With another loss the spectra belong to reweighted rows and tell no error of the table.
    errors = _error_by_rank(clustering.spectra) if compression.fitted.recipe.loss == Loss.L2 else None
    plot_fit(path, report, errors, svd_errors)


def _pushed_to(options: CompressOptions, hooks: Hooks) -> str | None:
    repo = options.push_to_hub
    if repo is None:
        return None
    hooks.upload()
    try:
        return push_folder(options.folder, repo, options.private, hooks.warn).url
    except ProjclustError as error:
        again = f"projclust push {shlex.quote(str(options.folder))} {repo}" + " --private" * options.private
        raise type(error)(f"{options.folder} is written, but not pushed: {error}; `{again}` tries again") from error


def _error_by_rank(spectra: Tensor) -> list[float]:
    """Return the relative squared error at every rank from 0 to d, from eigenvalues of the groups' scatter matrices."""
    total = spectra.sum(0) if spectra.dim() == 2 else spectra  # (d,)
    tails = torch.cat([total.flip(0).cumsum(0).flip(0), total.new_zeros(1)])
    return (tails / tails[0].clamp(min=1e-300)).tolist()


def _peak_memory(device: torch.device) -> int | None:
    """Return the peak of bytes on the GPU or in this process; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
