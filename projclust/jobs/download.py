"""What a download of a model takes by part, and what makes each smaller: sizes of files, no weights are read."""

from pathlib import Path

from transformers import PreTrainedModel

from projclust.checkpoints.save import found_side_files, without_spaces
from projclust.checkpoints.source import CONFIG, TOKENIZER, WEIGHTS, is_tokenizer_file
from projclust.checkpoints.tensors import weight_files
from projclust.errors import ProjclustError
from projclust.hf.config import ProjClustConfig
from projclust.onnx_export.task import task_of
from projclust.results.reports import DownloadPart

_COMPRESS = "projclust compress"
_BODY, _EXPORT = "projclust compress --body int8 or int4", "projclust compress or export --to onnx --body int8 or int4"
_REWRITE = f"projclust compress, expand and export write {TOKENIZER} without its spaces"

# Of the tokenizer's bytes, what is worth a line.
_WORTH = 0.02


def checkpoint_download(
    folder: Path, table: int, model: PreTrainedModel, config: ProjClustConfig | None
) -> dict[str, DownloadPart]:
    """The files that programs load of a checkpoint whose table takes so many bytes; `config` is a compressed one's."""
    weights = [*weight_files(folder), *(path for path in found_side_files(folder) if path.name == WEIGHTS)]
    body = sum(path.stat().st_size for path in weights) - table
    advice = {"table": _COMPRESS if config is None else None, "body": _EXPORT if _is_exported(model) else _BODY}
    if config is not None and config.body is not None:
        advice["body"] = None
    return _parts(folder, {"table": table, "body": body}, advice)


def graph_download(folder: Path, graph: int) -> dict[str, DownloadPart]:
    """The files that programs load of a folder of ONNX files: one graph, of so many bytes, and what lies beside."""
    return _parts(folder, {"graph": graph}, {})


def _parts(folder: Path, weights: dict[str, int], advice: dict[str, str | None]) -> dict[str, DownloadPart]:
    """Parts of weights, of which there is no more to find, with the tokenizer and all other small files."""
    small = [path for path in found_side_files(folder) if path.name != WEIGHTS]
    tokenizer = [path for path in small if is_tokenizer_file(path.relative_to(folder).as_posix())]
    others = [folder / CONFIG, *(path for path in small if path not in tokenizer)]
    sizes = {**weights, "tokenizer": _size(tokenizer), "other": _size(others)}
    saves = _saved(folder / TOKENIZER)
    if saves > _WORTH * sizes["tokenizer"]:
        advice = {**advice, "tokenizer": _REWRITE}
    total = sum(sizes.values())
    return {
        name: DownloadPart(size, size / total, advice.get(name), saves if name == "tokenizer" else None)
        for name, size in sizes.items()
    }


def _size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _saved(tokenizer: Path) -> int:
    """The bytes of spaces in a tokenizer's JSON."""
    try:
        content = without_spaces(tokenizer)
        return 0 if content is None else max(tokenizer.stat().st_size - len(content), 0)
    except OSError:  # there is none, or none that may be read
        return 0


def _is_exported(model: PreTrainedModel) -> bool:
    """Whether a graph takes the model's place: those of causal models do not generate."""
    try:
        return task_of(model).name != "text-generation"
    except ProjclustError:
        return False
