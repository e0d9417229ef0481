"""Models that are a table and nothing else: StaticEmbedding of sentence-transformers, and model2vec.

Such a model's vector of a text is the mean of its tokens' rows. So is that of a transformer without a layer, and
transformers has one: XLNet adds nothing to its word embedding. As a folder of that kind a table goes the way of all
others, and sentence-transformers loads it with its stock modules; `write_static` goes back.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from projclust.checkpoints.save import copy_side_files
from projclust.checkpoints.source import (
    CONFIG,
    MODULES,
    STATIC,
    STATIC_MARK,
    TOKENIZER,
    WEIGHTS,
    read_json,
    static_part,
)
from projclust.checkpoints.tensors import read_headers
from projclust.errors import CheckpointError, ProjclustError

_MODULES = "sentence_transformers.models."
_SENTENCES = "config_sentence_transformers.json"
_POOLING = "0_Pooling"
_TABLE, _OTHER_TABLE = "embedding.weight", "embeddings"
_WORD_TABLE = "word_embedding.weight"
# What only the one kind of folder has.
_TRANSFORMERS_ONLY = (CONFIG, "tokenizer_config.json", "sentence_bert_config.json")


def as_transformers(folder: Path) -> Path:
    """A folder as transformers loads it: itself or, of a table alone, one that lasts as long as this process."""
    part = static_part(folder)
    if part is None:
        return folder
    weights = part / WEIGHTS
    return _converted(folder, weights.stat().st_mtime_ns if weights.is_file() else 0)


@cache
def _converted(folder: Path, changed: int) -> Path:
    made = Path(tempfile.mkdtemp(prefix="projclust-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    try:
        _convert(folder, made)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise ProjclustError(
            f"cannot write to {made}: {error.strerror or error}; TMPDIR names another folder for such files"
        ) from None
    return made


def _convert(folder: Path, target: Path) -> None:
    part = static_part(folder)
    assert part is not None
    copy_side_files(folder, target)
    if (folder / "README.md").is_file():
        shutil.copyfile(folder / "README.md", target / "README.md")
    if part != folder:
        shutil.rmtree(target / part.name, ignore_errors=True)
    n, d = _write_table(part / WEIGHTS, target / WEIGHTS)
    pad, length = _write_tokenizer(part / TOKENIZER, target)
    config = {"model_type": "xlnet", "architectures": ["XLNetModel"], STATIC_MARK: True}
    config |= {"vocab_size": n, "d_model": d, "n_layer": 0, "n_head": 1, "d_inner": 1, "dropout": 0.0}
    _write(target / CONFIG, {**config, "pad_token_id": pad, "bos_token_id": None, "eos_token_id": None})
    _write(target / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    (target / _POOLING).mkdir()
    _write(target / _POOLING / CONFIG, {"word_embedding_dimension": d, "pooling_mode_mean_tokens": True})
    first = [("", "Transformer"), (_POOLING, "Pooling")]
    _write_modules(target, [{"path": path, "type": _MODULES + kind} for path, kind in first] + _more(folder))


def write_static(source: Path, target: Path) -> None:
    """Make a dense folder of a table as transformers loads it, `target`, one that holds the table and nothing else.

    `source` is the compressed folder that it was made of.
    """
    from safetensors.torch import load_file, save_file

    save_file({_TABLE: load_file(target / WEIGHTS)[_WORD_TABLE]}, target / WEIGHTS)
    for name in _TRANSFORMERS_ONLY:
        (target / name).unlink(missing_ok=True)
    shutil.rmtree(target / _POOLING, ignore_errors=True)
    if not (target / _SENTENCES).exists():  # by which model2vec knows the kind of folder
        _write(target / _SENTENCES, {"model_type": "SentenceTransformer", "__version__": {}, "prompts": {}})
    _write_modules(target, [{"path": "", "type": _MODULES + STATIC}, *_more(source)[1:]])


def _write_table(source: Path, target: Path) -> tuple[int, int]:
    """Write the table as XLNet has it, with one row for each token; its size."""
    headers = read_headers([source])
    name = next((name for name in (_TABLE, _OTHER_TABLE) if name in headers), None)
    if name is None or len(headers[name].shape) != 2:
        raise CheckpointError(f"{source} holds no table of a static embedding")
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(source)
    table = tensors[name]
    if not table.dtype.is_floating_point:
        table = table.float()
    # Tokens may share rows, and weigh them (the vocabulary quantization of model2vec).
    if name == _OTHER_TABLE and "mapping" in tensors:
        table = table[tensors["mapping"].long()]
    if name == _OTHER_TABLE and "weights" in tensors:
        table = (table.double() * tensors["weights"].double().unsqueeze(1)).to(table.dtype)
    n, d = table.shape
    mask = torch.zeros(1, 1, d, dtype=table.dtype)  # which XLNet has as well, and reads only in its own training
    save_file({_WORD_TABLE: table.contiguous(), "mask_emb": mask}, target, metadata={"format": "pt"})
    return n, d


def _write_tokenizer(source: Path, target: Path) -> tuple[int, int | None]:
    """Write a tokenizer that adds no token of its own; the number of its padding, and how many tokens it takes."""
    content = read_json(source)
    try:
        length = (content.get("truncation") or {}).get("max_length")
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # with their scores
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
        known = {**vocabulary, **added}
        unknown = content["model"].get("unk_token")
        names = ["[PAD]", "<pad>", "<|pad|>", *added, unknown, *vocabulary]
        pad = next(name for name in names if name in known)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad}
        settings |= {"unk_token": unknown} if unknown in known else {}
        content |= {"post_processor": None, "padding": None}
        number = int(known[pad])
    except (AttributeError, KeyError, TypeError, ValueError, StopIteration):
        raise CheckpointError(f"{source} is damaged: it is no tokenizer with a vocabulary") from None
    _write(target / TOKENIZER, content)
    _write(target / "tokenizer_config.json", settings)
    return number, length


def _more(folder: Path) -> list[dict[str, Any]]:
    """The modules after the first, such as Normalize."""
    if not (folder / MODULES).is_file():
        return [{"path": "1_Normalize", "type": _MODULES + "Normalize"}] * bool(
            read_json(folder / CONFIG).get("normalize")
        )
    return [{"path": own["path"], "type": own["type"]} for own in json.loads((folder / MODULES).read_bytes())[1:]]


def _write_modules(folder: Path, modules: list[dict[str, Any]]) -> None:
    content = [{"idx": number, "name": str(number), **own} for number, own in enumerate(modules)]
    _write(folder / MODULES, content)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
