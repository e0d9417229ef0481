"""The transformers quantizer that makes compressed checkpoints load with plain ``from_pretrained``."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer

from projclust.checkpoints.tensors import read_headers
from projclust.errors import CheckpointError, ProjclustError
from projclust.hf.adapters import heed_adapters
from projclust.hf.body import Scales, packed_state, stored_body
from projclust.hf.compression import compress_embedding, weights_of
from projclust.hf.config import FORMAT_VERSIONS, ProjClustConfig
from projclust.hf.private import (
    forget_unpacking,
    heed_compressed_encoders,
    is_dispatched,
    keep_biases,
    state_dict_to_save,
    unpacking,
)
from projclust.hf.resize import heed_resizes
from projclust.hf.stored import check_digest, check_loaded_tables, check_stored_tensors, digest, is_dense, stored_dtypes
from projclust.hf.swap import compressed_parts, restore_dense, swap_embedding
from projclust.options import FLOAT_BYTES, Body
from projclust.shapes import CodedShape, FactoredShape
from projclust.tables import CompressedTable, FactorizedTable
from projclust.tables.head import TiedHead


class ProjClustHfQuantizer(HfQuantizer):
    """Swaps the modules in before a compressed checkpoint is read, or compresses a dense model after it was."""

    requires_calibration = False
    is_trainable = is_compileable = True
    is_qat_trainable = True  # Trainer asks for it when no adapter is attached
    quantization_config: ProjClustConfig
    # Whether a checkpoint that says that it is compressed holds a dense table: that of a model which was made from the
    # config of a compressed one.
    is_dense = False

    def __init__(self, quantization_config: ProjClustConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.body_scales: Scales = {}

    def get_weight_conversions(self) -> list[Any]:
        """What becomes of the tensors of a checkpoint while they are read: a packed body becomes floats."""
        return [unpacking(self.body_scales)] if self.pre_quantized and self.quantization_config.body else []

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse checkpoints of a later format."""
        version = self.quantization_config.version
        if version not in FORMAT_VERSIONS:
            raise CheckpointError(
                f"this checkpoint has projclust format {version!r}, and this projclust reads formats "
                f"{', '.join(map(str, FORMAT_VERSIONS))}: upgrade projclust"
            )

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        if self.pre_quantized:
            files = [Path(file) for file in checkpoint_files or [] if Path(file).suffix == ".safetensors"]
            stored, parts = read_headers(files), compressed_parts(model)
            for prefix, part in parts:
                stated = part.config.quantization_config
                config = stated if isinstance(stated, ProjClustConfig) else ProjClustConfig.from_dict(stated)
                part.config.quantization_config = config
                own = {name: tensor for name, tensor in stored.items() if name.startswith(prefix)}
                shape = _stated_shape(config)
                check_stored_tensors(own, shape)
                swap_embedding(model, shape, part=part)
                config.sha256 = None
            if not parts:
                shape = _stated_shape(self.quantization_config)
                self.is_dense = is_dense(stored, shape, model)
                if self.is_dense:
                    return model
                check_stored_tensors(stored, shape)
                check_digest(files, self.quantization_config.sha256, shape, at_load=True)
                swap_embedding(model, shape)
            # What is in memory may change, and whoever saves it by hand has no new one.
            self.quantization_config.sha256 = None
            heed_resizes(model)
            if self.quantization_config.body is not None:
                stored_body(model, stored, Body(self.quantization_config.body))
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.is_dense:
            # Nor is what is saved next compressed.
            self.remove_quantization_config(model)
            return model
        if self.pre_quantized:
            forget_unpacking(model)
            check_loaded_tables(model)
        else:
            config = self.quantization_config
            recipe = config.recipe.require_target()
            weights = weights_of(model, recipe, config.tokenizer, config.sample_weight)
            compress_embedding(model, recipe, weights, config=config, twin_check=config.twin_check)
        for module in model.modules():
            if isinstance(module, CompressedTable) and not any(part.is_meta for part in module.primary.buffers()):
                module.prepare()
        # half(), float() and to(dtype) are as safe as on a dense model: factors are ordinary float parameters, and
        # codes are bytes, which they leave alone.
        model.is_quantized = False
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        restore_dense(model)
        for _, part in compressed_parts(model):
            del part.config.quantization_config
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """What `save_pretrained` writes: factors in the dtype of `codes`, where that is narrower than the model's, and
        the other weights as `body` says.

        Called before config.json is written, which gets the digest of what will be.
        """
        state = _with_own_heads(model, self._state_to_save(model))
        if isinstance(config := getattr(model.config, "quantization_config", None), ProjClustConfig):
            config.sha256 = _digest_of(model, state)
        return state, {}

    def _state_to_save(self, model: PreTrainedModel) -> dict[str, Tensor] | None:
        state, codes, body = state_dict_to_save(), self.quantization_config.codes, self.quantization_config.body
        if body is not None:
            state = packed_state(model, state, Body(body), self.body_scales)
        if codes not in FLOAT_BYTES:
            return state
        dtype: torch.dtype = getattr(torch, codes)
        state = dict(model.state_dict() if state is None else state)
        narrowed: dict[int, Tensor] = {}  # by parameter, so that tied factors stay one tensor
        for name, module in model.named_modules(remove_duplicate=False):
            for factor in module.factor_names() if isinstance(module, FactorizedTable) else ():
                key = f"{name}.{factor}"
                # On the meta device while they are offloaded: transformers stores those as they come back.
                if key in state and not state[key].is_meta and dtype.itemsize < state[key].dtype.itemsize:
                    narrow = narrowed.setdefault(id(getattr(module, factor)), state[key].to(dtype))
                    if not torch.isfinite(narrow).all():
                        raise ProjclustError(
                            f"{key} has outgrown {codes}: set config.quantization_config.codes to None"
                        )
                    state[key] = narrow
        return state


def _with_own_heads(model: PreTrainedModel, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """A state to save in which output layers that read another table than the embedding's are dense.

    So they become where an adapter trained a copy of one of the two. The file has room for one table.
    """
    modules = list(model.named_modules())
    known = {id(module) for _, module in modules}
    for name, head in modules:
        if not isinstance(head, TiedHead) or is_dispatched(head):
            continue
        own = isinstance(head, FactorizedTable) and head.weight.data_ptr() != head.primary.weight.data_ptr()
        if own or id(head.primary) not in known:
            state = dict(model.state_dict() if state is None else state)
            for part in [key for key in state if key.rpartition(".")[0] == name and not key.endswith(".bias")]:
                del state[part]
            state[f"{name}.weight"] = head.dense_weight()
            model.config.get_text_config().tie_word_embeddings = False
    return state


def _stated_shape(config: ProjClustConfig) -> FactoredShape | CodedShape:
    """The shape that config.json states of a table."""
    try:
        return config.stored_shape()
    except ValueError as error:
        raise CheckpointError(f"damaged checkpoint: {error}") from None


def _digest_of(model: PreTrainedModel, state: dict[str, Tensor] | None) -> str | None:
    """That of the embedding in a state to save, by default the model's; None of one that is not here as a whole."""
    for name, table in model.named_modules():
        if isinstance(table, CompressedTable) and table.primary is table:
            state = table.state_dict(prefix=f"{name}.") if state is None else state
            tensors = {own: state[f"{name}.{own}"] for own in stored_dtypes(table.shape) if f"{name}.{own}" in state}
            # Offloaded, or a shard of what other processes have.
            elsewhere = any(tensor.is_meta or hasattr(tensor, "full_tensor") for tensor in tensors.values())
            return None if elsewhere or len(tensors) < len(stored_dtypes(table.shape)) else digest(tensors)
    return None


def register() -> None:
    """Tell transformers of the quantization method; a second call changes nothing."""
    with suppress(ValueError):  # the name is known already
        register_quantization_config("projclust")(ProjClustConfig)
    with suppress(ValueError):
        register_quantizer("projclust")(ProjClustHfQuantizer)
    keep_biases()
    heed_compressed_encoders()
    heed_adapters()


register()
