"""The job behind `projclust plan`: which sizes the embedding can have, and what each costs."""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projclust.checkpoints.folder import new_folder, write_options
from projclust.checkpoints.load import load_tokenizer
from projclust.checkpoints.tensors import embedding_tensors, stored_tensors
from projclust.coding.predict import check_budget, least_bytes
from projclust.errors import ProjclustError
from projclust.hf.generation import own_text_of
from projclust.hf.probe import Outputs, probe
from projclust.hf.sensitivity import model_sensitivity
from projclust.hf.swap import input_embedding
from projclust.jobs.by_script import Scripts, errors_by_script
from projclust.jobs.common import SILENT, Hooks, choose_device, load_dense, versions
from projclust.jobs.download import checkpoint_download
from projclust.jobs.options import DEFAULT_BITS, PlanOptions
from projclust.options import Codes, Sensitivity
from projclust.recipes.problem import Estimate, Problem, RowErrors
from projclust.recipes.recipe import RECOMMENDED, RECOMMENDED_BITS, Recipe, short_number
from projclust.results.reports import Pick, PlanReport, PlanRow, ScriptErrors
from projclust.shapes import DenseShape, parse_size
from projclust.weights.choose import choose_weights
from projclust.weights.names import UNIFORM
from projclust.weights.row_weights import RowWeights

PLAN_FILE, PLOT_FILE = "projclust_plan.json", "projclust_plan.png"
# What a pick must keep where no size was asked for.
GOOD_COSINE, GOOD_KL, GOOD_ERROR = 0.95, 0.1, 0.25
# The paper takes 40% of the parameters off, which is shown for comparison.
_PAPER_RATIO = 0.4
# So many rows of each script are coded to see what is lost.
_SCRIPT_ROWS = 256


def plan_checkpoint(options: PlanOptions, hooks: Hooks = SILENT) -> PlanReport:
    """Find which sizes a model's embedding can have, by our recipes and by known ones, and what each costs.

    Nothing is written unless `output` names a folder.
    """
    started = time.perf_counter()
    options.check_folder()
    device = choose_device(options.device)
    dense = load_dense(options.model, options.revision, options.seed, hooks.stage)
    model, shape = dense.loaded.model.to(device).eval(), dense.shape
    table = input_embedding(model)[1].weight.detach()
    sizes = _sizes(options, shape)
    shared = replace(options.recipe, codes=Codes.AUTO)
    tokenizer = cache(lambda: load_tokenizer(dense.folder))
    weights = choose_weights(shared, tokenizer, shape.n, hooks.stage, hooks.warn, own_text_of(model, options.seed))
    scripts = Scripts.of(tokenizer, shape.n)
    del tokenizer
    # Sensitivity helps the outputs, which only a probe shows, and increases the table's own error.
    by_model = options.sensitivity or (Sensitivity.MODEL if options.probe else Sensitivity.NONE)
    sensitivity = None
    if by_model == Sensitivity.MODEL:
        hooks.stage("measuring which errors the model notices")
        sensitivity = model_sensitivity(model, weights.draws, options.seed, weights.own_text)
    notes: list[str] = []
    problem = Problem.of(table, weights.values, sensitivity=sensitivity)
    found: list[Estimate] = []

    def estimates() -> Iterator[Estimate]:
        """One after the other, so that no more tables are in memory than one; the rows of the pick are looked at."""
        for estimate in _estimates(options, problem, sizes, hooks.stage, notes):
            found.append(estimate if estimate.name == "auto" else replace(estimate, rebuild=None))
            yield estimate
            del estimate  # with its table, before the next one is made

    outputs: list[Outputs | None]
    if options.probe:
        outputs = probe(model, estimates(), weights.draws, options.seed, hooks.stage)
    else:
        outputs = list(map(_unprobed, estimates()))
    rows = [_row(estimate, shape, own) for estimate, own in zip(found, outputs, strict=True)]
    rows.sort(key=lambda row: (-row.bytes, row.recipe))
    if sensitivity is None:
        notes.append(
            "auto without the sensitivity of compress, which trades errors of the table for errors of the outputs"
        )
    pick = _pick(rows, options, weights, sizes, shape)
    if pick is not None:
        estimate = next(one for one in found if one.name == "auto" and one.bytes == pick.bytes)
        pick = replace(pick, errors_by_script=_by_script(scripts, problem, estimate))
    bytes_dense = sum(t.bytes for t in embedding_tensors(stored_tensors(dense.folder), dense.name, dense.tied).values())
    report = PlanReport(
        model=options.model,
        n=shape.n,
        d=shape.d,
        bytes_dense=bytes_dense,
        weights=weights.recorded,
        metric=str(by_model),
        seed=options.seed,
        probe=options.probe,
        rows=rows,
        pick=pick,
        notes=notes,
        total_seconds=round(time.perf_counter() - started, 3),
        versions=versions(),
        output=options.output,
        weights_chosen=weights.chosen,
        download=checkpoint_download(dense.folder, bytes_dense, model, None),
    )
    if options.output is not None:
        hooks.stage(f"writing {options.output}")
        with new_folder(Path(options.output), options.overwrite) as folder:
            from projclust.report.plan_plot import plot_plan  # matplotlib is slow to import

            plot_plan(folder / PLOT_FILE, report)
            write_options(folder, replace(options, weights=weights.name, sensitivity=by_model))
            (folder / PLAN_FILE).write_text(json.dumps(_without_times(report), indent=2) + "\n", encoding="utf-8")
    return report


def _unprobed(estimate: Estimate) -> None:
    """Stands for the outputs of an estimate, which no one keeps: in a loop the last one would live on."""


def _without_times(report: PlanReport) -> dict[str, Any]:
    """Return what is the same when the same command runs again."""
    found = report.as_json()
    del found["total_seconds"]
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in found["rows"]]
    return {**found, "rows": rows}


def _by_script(scripts: Scripts | None, problem: Problem, estimate: Estimate) -> dict[str, ScriptErrors] | None:
    """Return what is lost by script, measured on a sample of each."""
    rebuild, weights = estimate.rebuild, problem.weights
    if rebuild is None:
        return None
    generator = torch.Generator().manual_seed(0)

    def error_of(rows: Tensor) -> float:
        if len(rows) > _SCRIPT_ROWS:  # rows are drawn by their weights, and count alike from there on
            drawn = torch.ones(len(rows)) if weights is None or not weights[rows].any() else weights[rows]
            rows = rows[torch.multinomial(drawn, _SCRIPT_ROWS, generator=generator)]
            return RowErrors.of(rebuild, problem.table, rows).relative()
        return RowErrors.of(rebuild, problem.table, rows).relative(None if weights is None else weights[rows])

    return errors_by_script(scripts, weights, error_of)


def _row(estimate: Estimate, shape: DenseShape, outputs: Outputs | None) -> PlanRow:
    return PlanRow(
        recipe=estimate.name,
        bits_per_weight=shape.bits_for_bytes(estimate.bytes),
        bytes=estimate.bytes,
        relative_error=estimate.errors.plain,
        weighted_relative_error=estimate.errors.weighted,
        cosine=None if outputs is None else outputs.cosine,
        kl=None if outputs is None else outputs.kl,
        predicted=estimate.predicted,
        seconds=round(estimate.seconds, 3),
    )


def _sizes(options: PlanOptions, shape: DenseShape) -> list[int]:
    """Return the bytes to look at, the most first; sizes that were asked for and cannot be are refused."""
    sizes = {shape.bytes_for_bits(bits) for bits in options.bits}
    asked = [] if options.bits == DEFAULT_BITS else sorted(sizes)
    if options.size is not None:
        asked.append(parse_size(options.size))
    for size in asked:
        check_budget(size, shape.n, shape.d)
    return sorted((size for size in sizes.union(asked) if size >= least_bytes(shape.n, shape.d)), reverse=True)


def _estimates(
    options: PlanOptions, problem: Problem, sizes: list[int], stage: Callable[[str], None], notes: list[str]
) -> Iterator[Estimate]:
    """Estimate our codes and the baselines of free size at every size in bytes, and the others at their own.

    The notes get what is left out, and why.
    """
    seed, at_sizes = options.seed, [str(size) for size in sizes]
    groups: dict[str, list[Recipe]] = {
        "auto": [Recipe(size=size, codes=Codes.AUTO, seed=seed) for size in at_sizes],
        "projective": [Recipe(ratio=_PAPER_RATIO, codes=codes, seed=seed) for codes in (None, Codes.INT8)],
        "int8, int4, int3, int2, nf4": [Recipe(method=m, seed=seed) for m in ("int8", "int4", "int3", "int2", "nf4")],
        "svd-int4": [Recipe(method="svd-int4", size=size) for size in at_sizes],
        "pq": [Recipe(method="pq", size=size, seed=seed) for size in at_sizes],
    }
    for name, recipes in groups.items():
        stage(f"measuring {name}" if name != "auto" else "fitting codes" if options.exact else "predicting codes")
        try:
            settled = _settled(recipes, problem.shape)
            yield from _exact(settled, problem) if options.exact else settled[0].estimate(problem, settled[1:])
        except ProjclustError as error:  # faiss is missing, or the table is too small for it
            if name == "auto":
                raise
            notes.append(f"without {name}: {error}")


def _settled(recipes: list[Recipe], shape: DenseShape) -> list[Recipe]:
    """Settle recipes for a table of this shape, each size once, and drop those whose size is too small for them."""
    found: dict[tuple[str, int], Recipe] = {}
    error = None
    for recipe in recipes:
        try:
            own = recipe.settled(shape)
            found.setdefault((own.method, own.stored_bytes(shape)), own)
        except ProjclustError as caught:
            error = caught
    if not found:
        raise ProjclustError("the sizes are too small for it") from error
    return list(found.values())


def _exact(recipes: list[Recipe], problem: Problem) -> Iterator[Estimate]:
    for recipe in recipes:
        started = time.perf_counter()
        fitted = recipe.fit_to(problem)
        name = "auto" if recipe.is_auto else recipe.method
        if recipe.is_stored and not recipe.is_auto:
            name = f"{recipe.method}-{recipe.codes or problem.shape.dtype}"
        # The arguments are evaluated in order, so that the time includes that of the errors.
        yield Estimate(name, fitted.bytes, fitted.errors, False, fitted.rows, seconds=time.perf_counter() - started)


def _against_recommended(pick: PlanRow, rows: dict[int, PlanRow], shape: DenseShape) -> str:
    """Why it is not the size that is recommended everywhere; `rows` are by their budgets in bytes."""
    row = rows.get(shape.bytes_for_bits(RECOMMENDED_BITS))
    if row is None or row is pick:
        return ""
    for value, name in ((row.kl, "a KL divergence"), (row.cosine, "a cosine")):
        if value is not None:
            return f"; {RECOMMENDED}, and has {name} of {value:.4f} here"
    error = f"a weighted error of {row.weighted_relative_error:.4f}"
    return f"; {RECOMMENDED}, and has {error} here (--probe tells what the outputs lose)"


def _pick(
    rows: list[PlanRow], options: PlanOptions, weights: RowWeights, sizes: list[int], shape: DenseShape
) -> Pick | None:
    """Return the command for the size that was asked for, or else for the smallest that is still good."""
    ours = [row for row in rows if row.recipe == "auto"]
    if not ours:
        return None
    target = None
    if options.size is not None:
        asked, target = ["--size", options.size], parse_size(options.size)
    elif len(options.bits) == 1:
        asked, target = ["--bits", short_number(options.bits[0])], shape.bytes_for_bits(options.bits[0])
    if target is not None:
        row, rule = next(row for row in ours if row.bytes <= target), "the size that was asked for"
    else:
        if options.probe:
            what = f"cosine of at least {GOOD_COSINE:g}"
            good = [row for row in ours if row.cosine is not None and row.cosine >= GOOD_COSINE]
            if any(row.kl is not None for row in ours):  # what the model says next
                what = f"KL divergence of at most {GOOD_KL:g}"
                good = [row for row in ours if row.kl is not None and row.kl <= GOOD_KL]
        else:
            what = f"weighted error of at most {GOOD_ERROR:g}"
            good = [row for row in ours if row.weighted_relative_error <= GOOD_ERROR]
        row, rule = (good[-1], f"the smallest with a {what}") if good else (ours[0], f"the largest; none has a {what}")
        rule += _against_recommended(row, rows=dict(zip(sizes, ours, strict=False)), shape=shape)
        budget = sizes[ours.index(row)]
        asked = ["--bits", short_number(next(bits for bits in options.bits if shape.bytes_for_bits(bits) == budget))]
    exponent = options.weights_exponent
    more = {
        "--weights": None if options.weights is None and weights.name != UNIFORM else weights.name,
        "--weights-exponent": None if exponent is None else short_number(exponent),
        "--sensitivity": options.sensitivity,
        "--seed": options.seed or None,
        "--revision": options.revision,
    }
    flags = [str(word) for flag, value in more.items() if value is not None for word in (flag, value)]
    model = f"./{options.model}" if options.model.startswith("-") else options.model
    command = shlex.join(["projclust", "compress", model, *asked, *flags])
    return Pick(command, rule, row.bytes, row.bits_per_weight)
