"""The job behind `projclust plan`: what sizes of the embedding are to be had, and what each costs."""

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from projclust.coding.predict import check_budget, least_bytes
from projclust.errors import ProjclustError
from projclust.hf.checkpoint import (
    embedding_tensors,
    local_folder,
    stored_tensors,
)
from projclust.hf.config import AUTO, Metric
from projclust.hf.folder import check_target, new_folder, write_options
from projclust.hf.metric import model_metric
from projclust.hf.swap import input_embedding
from projclust.planning import bytes_for_bits, parse_size
from projclust.report.plan_plot import plot_plan

from .common import UNIFORM, check_weights, choose_device, chosen_weights, load_dense, versions, weights_exponent
from .plan_probe import probe
from .plan_recipes import PlannedTable, recipes_for

PLAN_FILE, PLOT_FILE = "projclust_plan.json", "projclust_plan.png"
DEFAULT_BITS = (2.0, 1.0, 0.75, 0.5, 0.35)
# What a pick must keep where no size was asked for.
GOOD_COSINE, GOOD_ERROR = 0.95, 0.25


@dataclass(frozen=True)
class PlanOptions:
    """The options of `projclust plan`; see its --help. A metric of None is that of the model for a probe, else none."""

    model: str
    bits: tuple[float, ...] = DEFAULT_BITS
    size: str | None = None
    probe: bool = False
    exact: bool = False
    weights: str | None = None
    weights_exponent: float | None = None
    metric: str | None = None
    seed: int = 0
    device: str = "auto"
    revision: str | None = None
    output: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Hooks:
    """What a caller may watch: what begins, and what the user should know."""

    stage: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None


def plan_checkpoint(options: PlanOptions, hooks: Hooks | None = None) -> dict[str, Any]:
    """What sizes of a model's embedding are to be had, by our recipes and by known ones, and what each costs.

    Nothing is written unless `output` names a folder.

    Returns:
        "rows", by falling size, and "pick"; each row's "predicted" says whether its errors are estimates.

    Raises:
        ProjclustError: for every mistake and obstacle a user can mend.
    """
    hooks = hooks or Hooks()
    started = time.perf_counter()
    # It is for the outputs, which only a probe shows; of the table alone it makes more of an error.
    metric_name = options.metric or (Metric.MODEL if options.probe else Metric.NONE).value
    _check(options)
    if options.output is not None:
        check_target(Path(options.output), options.overwrite, local_folder(options.model))
    device = choose_device(options.device)
    source, loaded, name = load_dense(options.model, options.revision, options.seed, hooks.stage)
    model = loaded.model.to(device).eval()
    table = input_embedding(model)[1].weight.detach()
    n, d = table.shape
    weights, weight = chosen_weights(
        options.weights, AUTO, source, n, options.weights_exponent, hooks.stage, hooks.warn
    )
    power = weights_exponent(weights, options.weights_exponent)
    frequencies = None if weight is None or power is None else weight ** (1 / power)
    metric = None
    if metric_name == Metric.MODEL.value:
        hooks.stage("measuring which errors the model notices")
        metric = model_metric(model, frequencies, options.seed)
    notes: list[str] = []
    sizes = _sizes(options, n, d)
    plan = PlannedTable(table.clone(), weight, metric, options.seed, options.exact)
    recipes = list(recipes_for(plan, sizes, hooks.stage, notes))
    fidelity: list[dict[str, float | None]] = [{"cosine": None, "kl": None} for _ in recipes]
    if options.probe:
        fidelity = probe(model, recipes, frequencies, options.seed, hooks.stage)
    rows: list[dict[str, Any]] = [
        {
            "recipe": recipe.name,
            "bits_per_weight": 8 * recipe.bytes / (n * d),
            "bytes": recipe.bytes,
            "relative_error": recipe.errors[0],
            "weighted_relative_error": recipe.errors[1],
            **found,
            "predicted": recipe.predicted,
            "seconds": round(recipe.seconds, 3),
        }
        for recipe, found in zip(recipes, fidelity, strict=True)
    ]
    rows.sort(key=lambda row: (-row["bytes"], row["recipe"]))
    if metric is None:
        notes.append("auto without the metric of compress, which trades errors of the table for errors of the outputs")
    result = {
        "model": options.model,
        "n": n,
        "d": d,
        "bytes_dense": sum(t.bytes for t in embedding_tensors(stored_tensors(source), name).values()),
        "weights": weights.partition(":")[0],
        "metric": metric_name,
        "seed": options.seed,
        "probe": options.probe,
        "rows": rows,
        "pick": _pick(rows, options, weights, sizes, n, d),
        "notes": notes,
        "total_seconds": round(time.perf_counter() - started, 3),
        "versions": versions(),
        "output": options.output,
    }
    if options.output is not None:
        hooks.stage(f"writing {options.output}")
        with new_folder(Path(options.output), options.overwrite) as folder:
            plot_plan(folder / PLOT_FILE, result)
            write_options(folder, replace(options, weights=weights, metric=metric_name))
            (folder / PLAN_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _check(options: PlanOptions) -> None:
    for bits in options.bits:
        if not 0 < bits < 32:
            raise ProjclustError(f"--bits must lie between 0 and 32, not {bits:g}")
    if not options.bits and options.size is None:
        raise ProjclustError("give --bits or --size: there is no size to look at")
    if options.size is not None:
        parse_size(options.size)
    if options.metric not in [None, *(metric.value for metric in Metric)]:
        raise ProjclustError(f"--metric must be one of {', '.join(metric.value for metric in Metric)}")
    if options.weights is not None:
        check_weights(options.weights)


def _sizes(options: PlanOptions, n: int, d: int) -> list[int]:
    """Bytes to look at, falling.

    Raises:
        ProjclustError: one of those that were asked for is too small for a table, or larger than one.
    """
    sizes = {bytes_for_bits(bits, n, d) for bits in options.bits}
    asked = [] if options.bits == DEFAULT_BITS else sorted(sizes)
    if options.size is not None:
        sizes.add(parse_size(options.size))
        asked.append(parse_size(options.size))
    for size in asked:
        check_budget(size, n, d)
    return sorted((size for size in sizes if size >= least_bytes(n, d)), reverse=True)


def _pick(
    rows: list[dict[str, Any]], options: PlanOptions, weights: str, sizes: list[int], n: int, d: int
) -> dict[str, Any] | None:
    """The command for the size that was asked for, or else for the smallest that is still good."""
    ours = [row for row in rows if row["recipe"] == AUTO]
    if not ours:
        return None
    asked: list[str] = []
    target = None
    if options.size is not None:
        asked, target = ["--size", options.size], parse_size(options.size)
    elif len(options.bits) == 1:
        asked, target = ["--bits", _number(options.bits[0])], bytes_for_bits(options.bits[0], n, d)
    if target is not None:
        row, rule = next(row for row in ours if row["bytes"] <= target), "the size that was asked for"
    else:
        probed = options.probe
        what = f"cosine of at least {GOOD_COSINE:g}" if probed else f"weighted error of at most {GOOD_ERROR:g}"
        good = [
            row
            for row in ours
            if (row["cosine"] >= GOOD_COSINE if probed else row["weighted_relative_error"] <= GOOD_ERROR)
        ]
        row, rule = (good[-1], f"the smallest with a {what}") if good else (ours[0], f"the largest; none has a {what}")
        budget = sizes[ours.index(row)]
        bits = next(bits for bits in options.bits if bytes_for_bits(bits, n, d) == budget)
        asked = ["--bits", _number(bits)]
    more = [] if options.weights is None and weights != UNIFORM else ["--weights", weights]
    more += [] if options.weights_exponent is None else ["--weights-exponent", _number(options.weights_exponent)]
    more += [] if options.metric is None else ["--metric", options.metric]
    more += [] if options.seed == 0 else ["--seed", str(options.seed)]
    more += [] if options.revision is None else ["--revision", options.revision]
    model = f"./{options.model}" if options.model.startswith("-") else options.model
    command = shlex.join(["projclust", "compress", model, *asked, *more])
    return {"command": command, "rule": rule, "bytes": row["bytes"], "bits_per_weight": row["bits_per_weight"]}


def _number(value: float) -> str:
    """As short as `projclust compress` reads the same number from."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)
