"""What an export needs that projclust itself does not, and the names of what it makes; imports none of it.

onnx holds graphs, onnxscript is what torch's exporter translates with, and onnxruntime has the quantizers and runs the
result for the check. They come with the extra `onnx`.
"""

from importlib.metadata import version
from importlib.util import find_spec

from projclust.errors import ProjclustError
from projclust.options import Choice

# Where transformers.js, optimum and sentence-transformers look for graphs.
GRAPHS = "onnx"

# What a class makes, by the end of its name; the first that fits.
_OUTPUTS = {
    "ForMaskedLM": ("fill-mask", ("logits",)),
    "ForCausalLM": ("text-generation", ("logits",)),
    "LMHeadModel": ("text-generation", ("logits",)),
    "ForSequenceClassification": ("text-classification", ("logits",)),
    "ForTokenClassification": ("token-classification", ("logits",)),
    "ForQuestionAnswering": ("question-answering", ("start_logits", "end_logits")),
    "Model": ("feature-extraction", ("last_hidden_state",)),
}

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The first whose exporter says that it is at work, as tables have to know.
LEAST_TORCH = "2.8"


class Body(Choice):
    """How the weights beside the table are stored in a graph."""

    FLOAT32 = "float32"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def file(self) -> str:
        """The file of a graph by the names that transformers.js has for dtypes: fp32, q8 and q4.

        Of its two names of 8 bits it is q8 (model_quantized.onnx) and not int8 (model_int8.onnx), because q8 is what
        transformers.js takes in browsers where a page asks for nothing, and what optimum calls the file as well.
        """
        return {"float32": "model.onnx", "int8": "model_quantized.onnx", "int4": "model_q4.onnx"}[self.value]

    @property
    def dtype(self) -> str:
        """What transformers.js calls it."""
        return {"float32": "fp32", "int8": "q8", "int4": "q4"}[self.value]


def outputs_of(kind: str) -> tuple[str, tuple[str, ...]] | None:
    """The task of a class of models, as the Hub calls it, and the outputs of its graph; None where there is none."""
    return next((own for end, own in _OUTPUTS.items() if kind.endswith(end)), None)


def require_packages() -> None:
    """Refuse an export where its packages are not installed.

    Raises:
        ProjclustError: naming them.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ProjclustError(f"export needs {', '.join(missing)}: pip install projclust[onnx]")
    if not torch_is_new_enough():
        raise ProjclustError(f"export needs torch {LEAST_TORCH} or later, not {version('torch')}: upgrade torch")


def torch_is_new_enough() -> bool:
    """Whether the torch that is installed can export compressed tables."""
    numbers, least = (text.split(".")[:2] for text in (version("torch"), LEAST_TORCH))
    return [int(part) for part in numbers] >= [int(part) for part in least]
