"""Names of row weights, such as "wordfreq:en,de"; imports no torch."""

import os
from pathlib import Path

from projclust.errors import OptionError, ProjclustError

UNIFORM, MODEL, TOKENIZER, WORDFREQ, COUNTS, TEXT = "uniform", "model", "tokenizer", "wordfreq", "counts", "text"
# The kind of model and the languages that its tokenizer knows decide between the others.
AUTO = "auto"
# Numbers that a caller gave; no name can be read back into them.
GIVEN = "given"

# A few hundred tokens make up half of all text. Weighed by plain frequency, a fit spends its bytes on them and starves
# the rare, meaningful ones: the error per token of text falls, but the model's outputs get worse. Powers around 0.4
# keep the sentence vectors of MiniLM nearest to the uncompressed model's (benchmarks/study_codes.py).
DEFAULT_EXPONENT = 0.4
# For frequencies that a tokenizer tells; chosen on multilingual-e5-small.
TOKENIZER_EXPONENT = 0.5
# For those that a generative model tells; chosen on Gemma 3 270M.
MODEL_EXPONENT = 0.6
# Beyond it one token alone counts, whatever the table.
MOST_EXPONENT = 100.0


def check_weights_name(name: str) -> None:
    """Refuse a name that stands for no row weights, with an `OptionError`."""
    source, _, detail = name.partition(":")
    if name not in (AUTO, UNIFORM, MODEL, TOKENIZER, WORDFREQ) and not (
        source in (TOKENIZER, WORDFREQ, COUNTS, TEXT) and detail
    ):
        raise OptionError(
            "`weights` must be auto, model, tokenizer[:LANG,...], wordfreq[:LANG,...], "
            "counts:FILE, text:SOURCE or uniform"
        )


def check_exponent(exponent: float) -> None:
    """Refuse a power to which frequencies cannot be raised."""
    if not 0 < exponent <= MOST_EXPONENT:
        raise ProjclustError(
            f"the exponent of row weights must be a number greater than 0, at most {MOST_EXPONENT:g}, not {exponent}"
        )


def recorded(name: str) -> str:
    """A name as results hold it: commas between languages, and only the last part of a path on this machine."""
    source, _, detail = name.partition(":")
    if source == COUNTS:
        return f"{COUNTS}:{Path(detail).name}"
    if source in (WORDFREQ, TOKENIZER):
        return name.replace("+", ",")
    path, colon, config = (detail, "", "") if os.path.exists(detail) else detail.partition(":")
    if source == TEXT and (os.path.exists(path) or path.startswith((".", "/", "~"))):
        return f"{TEXT}:{Path(path).resolve().name}{colon}{config}"
    return name
