"""Every name of transformers and accelerate that is not part of their documented interface, in one place.

tests/hf/test_private.py has a test for each that fails when the name goes away or comes to mean something else.
"""

import re
import sys
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from projclust.coding.integers import scales_of, unpack_rows
from projclust.errors import ProjclustError
from projclust.tables.head import TiedHead

if TYPE_CHECKING:  # servers that only load checkpoints need not have it
    from accelerate import Accelerator

Ties = dict[str, str]
"""Parameters by name: each key is tied to its value."""

_DENSE_TIES = "_projclust_dense_ties"


def tied_weights(model: PreTrainedModel) -> Ties:
    """What is tied in a model and all its parts: transformers ties by these names, after loading and on demand."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def untie_different(parts: list[tuple[str, PreTrainedModel]]) -> None:
    """Where a config ties what a model keeps apart, such as an adapter that was merged into the output layer only.

    transformers loads both from a checkpoint and says so, but would tie them as soon as one of them looks otherwise. So
    the config says from now on that nothing is tied, and what was tied beside them, such as a bias, becomes two.

    Args:
        parts: a model and all models in it, each after the prefix of its names.

    Raises:
        ProjclustError: the same word of a config ties other tables too.
    """
    untied: set[str] = set()
    for prefix, part in parts:
        pairs = {pair: (_tensor(part, pair[0]), _tensor(part, pair[1])) for pair in _stated_ties(part).items()}
        different = [pair for pair, (first, second) in pairs.items() if not _same(first, second)]
        if not different:
            continue
        kept = [pair for pair in pairs if pair not in different]
        if any(tensor is not None and tensor.dim() > 1 for pair in kept for tensor in pairs[pair]):
            target, source = different[0]
            raise ProjclustError(
                f"{prefix}{target} is another than {prefix}{source}, to which config.json ties it as it ties others: "
                f"{type(part).__name__} cannot be compressed with an output layer of its own"
            )
        for target, _ in kept:
            module, _, name = target.rpartition(".")
            setattr(part.get_submodule(module), name, nn.Parameter(part.get_parameter(target).detach().clone()))
        for config in (part.config, part.config.get_text_config()):
            config.tie_word_embeddings = False
        untied |= {prefix + target for target, _ in pairs}
    for prefix, part in parts if untied else ():
        ties = tied_weights(part).items()
        part.all_tied_weights_keys = {target: source for target, source in ties if prefix + target not in untied}


def _stated_ties(part: PreTrainedModel) -> Ties:
    """What the config of a model ties in it, whether it is tied or not."""
    return part.get_expanded_tied_weights_keys()


def _tensor(part: PreTrainedModel, name: str) -> Tensor | None:
    try:
        return part.get_parameter_or_buffer(name)
    except AttributeError:  # some tables name what only some models have
        return None


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether they are not two tables of different entries."""
    if first is None or second is None or first is second or first.dim() < 2:
        return True
    return first.shape == second.shape and torch.equal(first, second)


def rewrite_ties(part: PreTrainedModel, rewritten: Callable[[Ties], Ties]) -> None:
    """Change what is tied in a model, on the instance and never on its class, which all models share.

    There are two tables: `tie_weights` reads one, and `_tied_weights_keys` is read when a part is looked at by itself.
    """
    part.__dict__[_DENSE_TIES] = (dict(part.all_tied_weights_keys), part.__dict__.get("_tied_weights_keys"))
    # A part may tie nothing itself and yet inherit entries from its own parts (BART with a task's head).
    part.all_tied_weights_keys = rewritten(part.all_tied_weights_keys)
    if getattr(part.config, "tie_word_embeddings", False) and part._tied_weights_keys:
        part._tied_weights_keys = rewritten(part.get_expanded_tied_weights_keys())


def keep_biases() -> None:
    """Let no tying change the bias of a compressed output layer; a second call changes nothing.

    transformers stretches it to the length of `weight`, which is another than the vocabulary's where ranks are unequal.
    On the class, for a model may also be a part of others, such as the decoder of an EncoderDecoderModel, that tie it.
    """
    stock = PreTrainedModel._adjust_bias
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def adjust(self: PreTrainedModel, output_embeddings: nn.Module, *others: Any) -> None:
        if not isinstance(output_embeddings, TiedHead):
            stock(self, output_embeddings, *others)

    PreTrainedModel._adjust_bias = adjust


class _OfTheEncoder:
    """What a config that has none says of quantization, where only its encoder is compressed."""

    def __get__(self, config: PretrainedConfig | None, owner: type) -> Any:
        if config is None:
            return self
        found = getattr(getattr(config, "encoder", None), "quantization_config", None)
        method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
        if method != "projclust":
            raise AttributeError(f"{owner.__name__} has no quantization_config")
        return found


def heed_compressed_encoders() -> None:
    """Let an EncoderDecoderModel be loaded whose encoder alone is compressed; a second call changes nothing.

    transformers asks a config and its decoder's whether a checkpoint is quantized, and never its encoder's.
    """
    EncoderDecoderConfig.quantization_config = _OfTheEncoder()


def restore_ties(part: PreTrainedModel) -> None:
    """Undo `rewrite_ties`, where it was called."""
    if _DENSE_TIES in part.__dict__:
        part.all_tied_weights_keys, own = part.__dict__.pop(_DENSE_TIES)
        # The class's own table shows again once the instance's is gone; some instances had one.
        part.__dict__.pop("_tied_weights_keys", None)
        if own is not None:
            part._tied_weights_keys = own


def was_read(tensor: Tensor) -> bool:
    """Whether transformers read a tensor from the checkpoint: it marks these; others are uninitialised memory."""
    return getattr(tensor, "_is_hf_initialized", False)


def is_dispatched(module: nn.Module) -> bool:
    """Whether accelerate placed a module on a device or offloaded it: its hooks wrap parameters anew, without marks."""
    return hasattr(module, "_hf_hook")


def scale_back(model: PreTrainedModel) -> None:
    """Undo what RWKV does to its own weights, in place, when it first runs in evaluation mode.

    It divides those of later layers by powers of two, exactly, and would do so again to what is saved and loaded.
    """
    for module in model.modules():
        if getattr(module, "layers_are_rescaled", False):
            module.training = True
            module._rescale_layers()
            module.training = False


def without_weights(kind: Any, config: PretrainedConfig) -> PreTrainedModel:
    """A model of a class, or of AutoModel, which alone has a public name for it, with no weights read."""
    return (getattr(kind, "from_config", None) or kind._from_config)(config)


def state_dict_to_save() -> dict[str, Tensor] | None:
    """The `state_dict` that the caller of `save_pretrained` passed, to be called by the quantizer inside of it.

    Under FSDP that is the only complete one, but where a model has a quantizer, transformers forgets it in favour of
    what the quantizer returns, to which it hands the model alone. So it is read from the caller's frame. Other ways do
    worse: with a state-dict hook the model's own state is saved, which is one shard; without the attribute
    `hf_quantizer` a model neither dequantizes nor knows in which dtype to save; a `save_pretrained` of the instance
    keeps the model alive or, by a weak reference, lets a shallow copy save the other model; one of the class changes
    every model of the process.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "save_pretrained":
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("state_dict")


def renew_scaler(accelerator: "Accelerator") -> None:
    """Forget the scale of fp16 gradients that the last model's training has found, as if none had been trained."""
    if accelerator.scaler is not None:
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)


def is_converted(model: PreTrainedModel) -> Callable[[str], bool]:
    """Tells of a parameter, by name, whether transformers stores it in another layout than the model has it."""
    targets = [
        re.sub(r"\\\d", ".*", target).replace("*.", r".*\.")
        for conversion in get_model_conversion_mapping(model, add_legacy=False)
        if isinstance(conversion, WeightConverter)
        for target in conversion.target_patterns
    ]
    pattern = re.compile("|".join(targets) if targets else "(?!)")
    return lambda name: pattern.search(name) is not None


class _Unpack(ConversionOps):
    """Makes the weight that packed rows stand for while it is read; other tensors pass."""

    def __init__(self, scales: dict[str, Tensor]) -> None:
        self.scales = scales

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Unpack":
        return self  # transformers copies a converter for every tensor, and all fill the same dict

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str = "",
        model: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        (found,) = input_dict.values()
        tensor = found[0] if isinstance(found, list) else found
        weight = model.get_parameter_or_buffer(full_layer_name)
        if tensor.dtype == torch.uint8 and weight.is_floating_point():
            columns = weight[0].numel()
            self.scales[full_layer_name] = scales_of(tensor, columns).cpu()
            tensor = unpack_rows(tensor, columns, _dtype_of(full_layer_name, weight, model)).unflatten(
                1, tuple(weight.shape[1:])
            )
        return {target_patterns[0]: tensor}


def _dtype_of(name: str, weight: Tensor, model: Any) -> torch.dtype:
    """The dtype in which a weight is kept, which some models want to be float32."""
    for part, dtype in model._get_dtype_plan(weight.dtype).items():
        if f".{part.strip('.*')}." in f".{name}.":
            return dtype
    return weight.dtype


def unpacking(scales: dict[str, Tensor]) -> WeightConverter:
    """A conversion that unpacks the weights of a body as they are read, and keeps their scales by name."""
    return WeightConverter("weight$", "weight", operations=[_Unpack(scales)])


def forget_unpacking(model: PreTrainedModel) -> None:
    """Let transformers save a model as if its weights had been floats: it would undo what it did at the load."""
    conversions = getattr(model, "_weight_conversions", None) or []
    ours = [one for one in conversions if any(isinstance(op, _Unpack) for op in getattr(one, "operations", []))]
    if ours:
        model._weight_conversions = [one for one in conversions if one not in ours]
