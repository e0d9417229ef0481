"""From how often a row is used to how much it matters."""

import math

from torch import Tensor

from projclust.errors import ProjclustError

# A few hundred tokens make up half of all text. Weighed by plain frequency, a fit spends its bytes on them and starves
# the rare, meaningful ones: the error per token of text falls, but the model's outputs get worse. Powers around 0.4
# keep the sentence vectors of MiniLM nearest to the uncompressed model's (scripts/study_codes.py).
DEFAULT_EXPONENT = 0.4


def row_weights(frequencies: Tensor, exponent: float = DEFAULT_EXPONENT) -> Tensor:
    """Weights of the rows from the frequencies of their tokens.

    Args:
        frequencies: (n,) float64 >= 0 in any unit, not all zero. What is zero stays zero.
        exponent: the power to which they are raised, more than 0; 1 leaves their ratios as they are.

    Returns:
        (n,) float64 between 0 and 1, the largest being 1.

    Raises:
        ProjclustError: the exponent is not a positive number.
    """
    if not (math.isfinite(exponent) and exponent > 0):
        raise ProjclustError(f"the exponent of row weights must be a number greater than 0, not {exponent}")
    # Scaled first: a power of numbers up to 1 does not overflow.
    return (frequencies / frequencies.max()) ** exponent
