"""`RowWeights`: row weights with their name, as jobs read, use and record them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projclust.errors import OptionError, ProjclustError
from projclust.results.identity import identity_hash
from projclust.weights import names
from projclust.weights.counts import read_counts
from projclust.weights.importance import row_weights
from projclust.weights.own_text import OwnText
from projclust.weights.text import text_frequencies
from projclust.weights.tokenizer import tokenizer_frequencies
from projclust.weights.wordfreq import word_frequencies

# Counts are the weights as they stand.
_EXPONENTS = {
    names.COUNTS: 1.0,
    names.MODEL: names.MODEL_EXPONENT,
    names.TOKENIZER: names.TOKENIZER_EXPONENT,
}


@dataclass(frozen=True, eq=False)  # tensors have no single answer to whether they are equal
class RowWeights:
    """Row weights by name.

    Example::

        weights = RowWeights.read("wordfreq:en,de", None, lambda: tokenizer, n_rows=30522)
        compress_model(model, bits=2, sample_weight=weights.values)

    Attributes:
        name: as it was given: "uniform", "model", "tokenizer", "wordfreq:en,de", "counts:FILE" or "text:SOURCE".
        frequencies: (n,) float64, how often each row is used, in any unit; None where the weights are uniform.
        exponent: the power of the frequencies that the weights are; None where they are uniform, or given as they are.
        chosen: what was taken and why, where the user left it to the program.
        own_text: the model's own text, where the frequencies are of that.
    """

    name: str = names.UNIFORM
    frequencies: Tensor | None = None
    exponent: float | None = None
    chosen: str | None = None
    own_text: OwnText | None = None

    @classmethod
    def read(
        cls,
        name: str,
        exponent: float | None,
        tokenizer: Callable[[], PreTrainedTokenizerBase],
        n_rows: int,
        own_text: Callable[[], OwnText] | None = None,
    ) -> "RowWeights":
        """The row weights that a name stands for.

        Args:
            name: one that `check_weights_name` accepts, but not "auto", which `choose_weights` resolves.
            exponent: the power to which frequencies are raised; by default 0.4, but 0.5 for those of the tokenizer,
                0.6 for those of the model's own text, and 1 for counts. Uniform weights have none.
            tokenizer: called where the model's tokenizer is needed.
            n_rows: rows of the table.
            own_text: called where the model's own text is needed; None where it writes none.

        Raises:
            ProjclustError: there are no such weights; the exponent is not a positive number; the file or text is
                missing or not one; the language is unknown; or what `tokenizer` raises.
        """
        names.check_weights_name(name)
        if exponent is not None:
            names.check_exponent(exponent)
        source, _, detail = name.partition(":")
        own = None
        match source:
            case names.UNIFORM:
                return cls(name)
            case names.MODEL:
                if own_text is None:
                    raise OptionError("`weights` model: the model generates no text; use auto, or name others")
                own = own_text()
                frequencies = own.frequencies(_expected(tokenizer, n_rows))
            case names.COUNTS:
                frequencies = read_counts(Path(detail), n_rows, lambda: dict(tokenizer().get_vocab()))
            case names.TEXT:
                frequencies = text_frequencies(detail, tokenizer(), n_rows)
            case names.TOKENIZER:
                frequencies = _tokenizer_frequencies(tokenizer(), n_rows, detail)
            case _:
                frequencies = word_frequencies(tokenizer(), n_rows, _languages(detail) or ["en"])
        if exponent is None:
            exponent = _EXPONENTS.get(source, names.DEFAULT_EXPONENT)
        return cls(name, frequencies, exponent, own_text=own)

    @cached_property
    def values(self) -> Tensor | None:
        """(n,) float64, the weights themselves, the largest being 1; None where they are uniform."""
        if self.frequencies is None or self.exponent is None:
            return self.frequencies
        return row_weights(self.frequencies, self.exponent)

    @property
    def draws(self) -> Tensor | None:
        """(n,) how often each row is drawn where a model is probed with random tokens; None for all alike."""
        return None if self.values is None else self.values ** (1 / (self.exponent or 1.0))

    def as_dict(self) -> dict[str, str | float | None]:
        """What a checkpoint records of them."""
        return {"weights": self.recorded, "weights_exponent": self.exponent}

    @cached_property
    def sha256(self) -> str | None:
        """The SHA-256 of the values; None where they are uniform."""
        return None if self.values is None else identity_hash({"weights": self.values.tolist()})

    @property
    def recorded(self) -> str:
        """The name as results hold it: commas between languages, and only the last part of a path on this machine."""
        return names.recorded(self.name)


def _languages(detail: str) -> list[str]:
    """The languages of "en,de", or of "en+de" where commas separate something else."""
    return re.split("[,+]", detail) if detail else []


def _expected(tokenizer: Callable[[], PreTrainedTokenizerBase], n_rows: int) -> Tensor | None:
    """How often the tokenizer expects each token; None where there is no tokenizer."""
    try:
        return tokenizer_frequencies(tokenizer(), n_rows)
    except ProjclustError:
        return None


def _tokenizer_frequencies(tokenizer: PreTrainedTokenizerBase, n_rows: int, detail: str) -> Tensor:
    """The tokenizer's own frequencies, or where languages are named, their mean with those of their dictionaries."""
    own = tokenizer_frequencies(tokenizer, n_rows)
    languages = _languages(detail)
    return (own + word_frequencies(tokenizer, n_rows, languages)) / 2 if languages else own
