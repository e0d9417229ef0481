"""What a generative model says when it is asked nothing: text of all its languages, without any data."""

from dataclasses import dataclass

import torch
from torch import Tensor

# The share of what the tokenizer expects. A few thousand tokens hold no word of rare languages: without it Gemma 3 270M
# loses those, and with more of it the frequent ones (benchmarks/causal.py).
_EXPECTED = 0.1


@dataclass(frozen=True, eq=False)
class OwnText:
    """Text that a model made up.

    Attributes:
        sequences: (s, t) int64 on the CPU, the token ids.
        probabilities: (n,) float64 of sum 1, how probable the model found each token on average over all places.
    """

    sequences: Tensor
    probabilities: Tensor

    def frequencies(self, expected: Tensor | None) -> Tensor:
        """(n,) float64 of sum 1: how often each token is said or read.

        `expected` (n,) says how often tokens are met that this text is too short for; by default all alike.
        """
        n = len(self.probabilities)
        started = torch.bincount(self.sequences[:, 0], minlength=n) / self.sequences.numel()
        said = (1 - float(started.sum())) * self.probabilities + started
        expected = torch.ones_like(said) if expected is None else expected
        return (1 - _EXPECTED) * said + _EXPECTED * expected / expected.sum()
