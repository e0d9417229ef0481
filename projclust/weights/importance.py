"""How much a row matters, from how often it is used."""

from torch import Tensor

from projclust.weights.names import DEFAULT_EXPONENT, check_exponent


def row_weights(frequencies: Tensor, exponent: float = DEFAULT_EXPONENT) -> Tensor:
    """Weights between 0 and 1, the largest being 1: a power of frequencies in any unit that are not all zero."""
    check_exponent(exponent)
    # Scaled first: a power of numbers up to 1 does not overflow.
    return (frequencies / frequencies.max()) ** exponent
