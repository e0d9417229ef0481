"""The row weights of a recipe."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from transformers import PreTrainedTokenizerBase

from projclust.errors import OptionError, ProjclustError
from projclust.recipes.recipe import Recipe
from projclust.weights import names
from projclust.weights.languages import known_languages
from projclust.weights.own_text import OwnText
from projclust.weights.row_weights import RowWeights

# So many languages are named where a vocabulary knows more.
_SHOWN = 8


def choose_weights(
    recipe: Recipe,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    n_rows: int,
    stage: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
    own_text: Callable[[], OwnText] | None = None,
) -> RowWeights:
    """The row weights that a recipe names, or its default ones; uniform ones where the default ones cannot be made.

    The tokenizer and the model's own text, None where it writes none, are called where they are needed; `stage` is told
    what begins, and `warn` what the user should know.
    """
    name, tokenizer = recipe.weights or recipe.default_weights, cache(tokenizer)
    if name == names.UNIFORM and recipe.weights_exponent is not None:
        raise OptionError("uniform weights have no exponent: drop `weights_exponent`, or name other `weights`")
    chosen = None
    try:
        if name == names.AUTO:
            if own_text is not None:
                name, reason = names.MODEL, "it generates text"
            else:
                name, reason = _by_languages(known_languages(tokenizer()))
            chosen = f"{name}: {reason}"
        if name != names.UNIFORM:
            stage(f"weighing rows by {chosen or name}")
        found = RowWeights.read(name, recipe.weights_exponent, tokenizer, n_rows, own_text)
        return replace(found, chosen=chosen)
    except ProjclustError as error:
        if recipe.weights not in (None, names.AUTO) or recipe.weights_exponent is not None:
            raise
        warn(f"all rows weigh the same, for want of word frequencies: {error}")
        return RowWeights(chosen=f"{names.UNIFORM}: {error}")


def _by_languages(known: list[str]) -> tuple[str, str]:
    """The name of the weights for a vocabulary that knows these languages, and why they are taken."""
    match known:
        case ["en"]:
            return names.WORDFREQ, "its vocabulary is English"
        case [language]:
            return (
                f"{names.WORDFREQ}:{language}",
                f"of the languages with dictionaries, its vocabulary knows {language}",
            )
        case []:
            return names.TOKENIZER, "its vocabulary knows no language that there is a dictionary of"
    some = ", ".join(known if len(known) <= _SHOWN else [*known[:_SHOWN], "..."])
    return names.TOKENIZER, f"of the languages with dictionaries, its vocabulary knows {len(known)} ({some})"
