from pathlib import Path

import pytest
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from projclust.checkpoints.load import load_tokenizer
from projclust.glue.batches import EncodedRows, encode
from projclust.glue.data import load_task
from projclust.glue.settings import Settings
from projclust.glue.training import make_accelerator


@pytest.fixture
def accelerator() -> Accelerator:
    """On the CPU, one process. Made for each test: all accelerators of a process share how they accumulate."""
    return make_accelerator(Settings(), cpu=True)


@pytest.fixture(scope="session")
def tokenizer(tiny_classifier: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_classifier)


@pytest.fixture(scope="session")
def demo_rows(tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
    """The demonstration's training rows as token ids."""
    return encode(load_task("demo", None).train, tokenizer, 32)
