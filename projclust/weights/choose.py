"""The row weights of a recipe."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from projclust.errors import OptionError, ProjclustError
from projclust.recipes.recipe import Recipe
from projclust.weights.names import UNIFORM
from projclust.weights.row_weights import RowWeights


def choose_weights(
    recipe: Recipe,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    n_rows: int,
    stage: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> RowWeights:
    """The row weights that a recipe names, or its default ones; uniform ones where the default ones cannot be made.

    The tokenizer is called where it is needed; `stage` is told what begins, and `warn` what the user should know.
    """
    name = recipe.weights or recipe.default_weights
    if name == UNIFORM and recipe.weights_exponent is not None:
        raise OptionError("uniform weights have no exponent: drop `weights_exponent`, or name other `weights`")
    if name != UNIFORM:
        stage(f"weighing rows by {name}")
    try:
        return RowWeights.read(name, recipe.weights_exponent, tokenizer, n_rows)
    except ProjclustError as error:
        if recipe.weights is not None or recipe.weights_exponent is not None:
            raise
        warn(f"all rows weigh the same, for want of word frequencies: {error}")
        return RowWeights()
