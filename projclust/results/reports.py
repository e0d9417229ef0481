"""What the commands report, a record each. Its fields are the keys of the JSON, in that order. Imports no torch."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # records of rooms above, which reports hold as they are
    from projclust.checkpoints.tensors import StoredTensor
    from projclust.hf.swap import DensePart


@dataclass(frozen=True)
class Report:
    """What a command found or did."""

    def as_json(self) -> dict[str, Any]:
        """Return the JSON that `--format json` prints."""
        return asdict(self)


@dataclass(frozen=True)
class SameSizeSvd:
    """An SVD of the size of a compressed table; the rank of a coded one is None."""

    j: int | None
    codes: str
    weighted_relative_error: float


@dataclass(frozen=True)
class ScriptErrors:
    """What is lost of the rows whose tokens are written in one script; `weight` is their share of all row weights."""

    rows: int
    weight: float
    weighted_relative_error: float


# Scripts are shown that have such a share of the row weights, and so many of them.
_SCRIPT_WEIGHT, _MOST_SCRIPTS = 0.002, 8


def script_text(errors: dict[str, ScriptErrors] | None) -> str | None:
    """What is lost by script, the largest error always among it; None unless a table has several that matter."""
    scripts = {name: own for name, own in (errors or {}).items() if name != "other" and own.weight >= _SCRIPT_WEIGHT}
    if len(scripts) < 2:
        return None
    shown = list(scripts)[:_MOST_SCRIPTS]
    worst = max(scripts, key=lambda name: scripts[name].weighted_relative_error)
    shown += [] if worst in shown else [worst]
    text = ", ".join(f"{name} {scripts[name].weighted_relative_error:.2f}" for name in shown)
    return text + f" and {len(scripts) - len(shown)} more" * (len(scripts) > len(shown))


@dataclass(frozen=True, kw_only=True)
class CompressReport(Report):
    """What `projclust compress` did; what only a fit can tell is None before it.

    `body` is how the weights beside the table are stored, None where as they were; its bytes and relative error are
    those of the weights that were rounded. `dtype` is that of all other floats, where it was asked for. `output_cosine`
    and `output_kl` compare the outputs with the dense model's, on random tokens or text that the model made up (see
    `projclust.hf.probe.Outputs`); None of models that take more than tokens. projclust_report.json is without
    `pushed_to`, the address of a repository, for it is pushed itself.
    """

    model: str
    method: str
    k: int | None
    j: int | None
    loss: str
    affine: bool
    n: int
    d: int
    seed: int
    weights: str
    weights_exponent: float | None
    codes: str
    metric: str | None
    params_dense: int
    params_stored: int | None
    compression_rate: float | None
    bytes_dense: int
    bytes_stored: int
    bits_per_weight: float
    relative_error: float | None = None
    weighted_relative_error: float | None = None
    cluster_sizes: list[int] | None = None
    ranks: list[int] | None
    row_bytes: list[int] | None = None
    parts: dict[str, int] | None = None
    iterations: int | None = None
    cost_history: list[float] | None = None
    restarts: int
    fit_seconds: float | None = None
    total_seconds: float | None = None
    peak_memory_bytes: int | None = None
    output: str
    versions: dict[str, str]
    embedding: str
    model_bytes_dense: int
    model_bytes_stored: int
    dense_parts: "list[DensePart]"
    body: str | None = None
    dtype: str | None = None
    body_bytes_dense: int | None = None
    body_bytes_stored: int | None = None
    body_relative_error: float | None = None
    output_cosine: float | None = None
    output_kl: float | None = None
    same_size_svd: SameSizeSvd | None = None
    device: str
    weights_chosen: str | None = None
    errors_by_script: dict[str, ScriptErrors] | None = None
    pushed_to: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What one recipe takes and leaves; `predicted` says whether its errors are estimates."""

    recipe: str
    bits_per_weight: float
    bytes: int
    relative_error: float
    weighted_relative_error: float
    cosine: float | None
    kl: float | None
    predicted: bool
    seconds: float


@dataclass(frozen=True)
class DownloadPart:
    """A part of what programs download of a model: its bytes, their share of all of it, and what makes it smaller.

    `advice` is None where nothing here does; `saves` are the bytes that it is known to save.
    """

    bytes: int
    share: float
    advice: str | None = None
    saves: int | None = None


@dataclass(frozen=True)
class Pick:
    """The command to go on with, and the rule by which it was chosen."""

    command: str
    rule: str
    bytes: int
    bits_per_weight: float
    errors_by_script: dict[str, ScriptErrors] | None = None


@dataclass(frozen=True, kw_only=True)
class PlanReport(Report):
    """What `projclust plan` found; the rows come by falling size, and `pick` is None where no size fits.

    `download` has the parts of `InspectReport`.
    """

    model: str
    n: int
    d: int
    bytes_dense: int
    weights: str
    metric: str
    seed: int
    probe: bool
    rows: list[PlanRow]
    pick: Pick | None
    notes: list[str]
    total_seconds: float
    versions: dict[str, str]
    output: str | None
    weights_chosen: str | None = None
    download: dict[str, DownloadPart] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredTable:
    """What the tensors of a compressed table come to; all but the first only of a coded one, class by class."""

    params_stored: int
    decoders: int | None = None
    cluster_sizes: list[int] | None = None
    ranks: list[int] | None = None
    row_bytes: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class HowCompressed:
    """How a checkpoint was compressed; its error and its origin are known where its folder has a report.

    `body` is how the weights beside the table are stored where they are rounded, with the bytes of those that are.
    """

    k: int
    j: int
    ranks: list[int]
    loss: str
    affine: bool
    method: str
    weights: str
    bits: float | None
    metric: str | None
    codes: str
    seed: int
    format_version: int
    body: str | None = None
    body_bytes_dense: int | None = None
    body_bytes_stored: int | None = None
    relative_error: float | None = None
    weighted_relative_error: float | None = None
    model: str | None = None
    versions: dict[str, str] | None = None


@dataclass(frozen=True)
class StoredGraph:
    """An ONNX file of a folder; `body` says how its weights beside the table are stored, where its name tells."""

    path: str
    body: str | None
    bytes: int
    opset: int


@dataclass(frozen=True, kw_only=True)
class InspectReport(Report):
    """What `projclust inspect` found; the JSON has the fields of `stored` and `how` among the others.

    `download` is all that programs load of the checkpoint: the `table`, the `body` (all other weights), the files of
    the `tokenizer`, and `other` ones such as configs. Cards and reports are none of it.
    """

    path: str
    compressed: bool
    model_class: str
    embedding: str
    n: int
    d: int
    bytes_stored: int
    bits_per_weight: float
    model_bytes_stored: int
    parts: "dict[str, StoredTensor]"
    download: dict[str, DownloadPart]
    graphs: list[StoredGraph]
    stored: StoredTable | None = None
    how: HowCompressed | None = None

    def as_json(self) -> dict[str, Any]:
        content = super().as_json()
        stored, how = (content.pop("stored") or {}), (content.pop("how") or {})
        return content | {name: value for name, value in stored.items() if value is not None} | how


@dataclass(frozen=True, kw_only=True)
class InspectExportReport(Report):
    """What `projclust inspect` found in a folder of ONNX files.

    `model_bytes_dense` are those of all weights of the model in float32, the table among them. `download` is what
    programs load with the smallest `graph`.
    """

    path: str
    model_class: str
    task: str | None
    graphs: list[StoredGraph]
    download: dict[str, DownloadPart]
    model_bytes_dense: int


@dataclass(frozen=True)
class PushedFile:
    """A file that goes to the Hub."""

    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PushReport(Report):
    """What `projclust push` pushed; `changed` says whether it made the commit. Both are None with `dry_run`."""

    path: str
    repo: str
    url: str
    private: bool
    files: list[PushedFile]
    bytes: int
    commit: str | None = None
    changed: bool | None = None
    dry_run: bool


@dataclass(frozen=True)
class ExportedFile:
    """A graph that was written; `path` is inside the folder, `body` says how its other weights are stored."""

    path: str
    body: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """What `projclust export` wrote.

    `model_bytes_dense` are those of all weights in float32, the table among them. `largest_difference` is that between
    onnxruntime's outputs of the float32 graph and PyTorch's, on random tokens.
    """

    model: str
    output: str
    model_class: str
    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    files: list[ExportedFile]
    model_bytes_dense: int
    largest_difference: float
    versions: dict[str, str]


@dataclass(frozen=True)
class ExpandReport(Report):
    """What `projclust expand` wrote, and the bytes of all weights before and after."""

    path: str
    output: str
    model_bytes_stored: int
    model_bytes_dense: int
