"""From how often a row is used to how much it matters."""

from torch import Tensor

from projclust.weights.names import DEFAULT_EXPONENT, check_exponent


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
    check_exponent(exponent)
    # Scaled first: a power of numbers up to 1 does not overflow.
    return (frequencies / frequencies.max()) ** exponent
