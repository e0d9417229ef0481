"""The transformers quantizer that makes compressed checkpoints load with plain ``from_pretrained``."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from projclust.coding.stored import CodedShape
from projclust.errors import CheckpointError, ProjclustError
from projclust.modules import CodedTable, CompressedTable, FactorizedTable

from .config import CODED_FORMAT, FLOAT_CODES, FORMAT_VERSIONS, ProjClustConfig
from .headers import read_headers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .swap import Shape


class ProjClustHfQuantizer(HfQuantizer):
    """Swaps the modules in before a compressed checkpoint is read, or compresses a dense model after it was."""

    requires_calibration = False
    quantization_config: ProjClustConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse checkpoints of a later format."""
        version = self.quantization_config.version
        if version not in FORMAT_VERSIONS:
            raise CheckpointError(
                f"this checkpoint has projclust format {version!r}, and this projclust reads formats "
                f"{', '.join(map(str, FORMAT_VERSIONS))}: upgrade projclust"
            )

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:  # a method, unlike the three below
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:  # Trainer asks for it when no adapter is attached
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def _process_model_before_weight_loading(
        self, model: "PreTrainedModel", checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> "PreTrainedModel":
        # Imported here: transformers may still be importing itself when this module is registered.
        from .swap import swap_embedding

        if self.pre_quantized:
            shape = stored_shape(self.quantization_config)
            check_stored_factors(checkpoint_files or [], shape)
            swap_embedding(model, shape)
        return model

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        if self.pre_quantized:
            for module in model.modules():
                if isinstance(module, FactorizedTable):
                    _check_loaded_factors(module)
                elif isinstance(module, CodedTable) and module.primary is module:
                    _check_loaded_codes(module)
        else:
            from .compress import compress_embedding

            compress_embedding(model, self.quantization_config)
        for module in model.modules():
            if isinstance(module, CompressedTable) and not any(part.is_meta for part in module.primary.buffers()):
                module.prepare()
        # half(), float() and to(dtype) are as safe as on a dense model: factors are ordinary float parameters, and
        # codes are bytes, which they leave alone.
        model.is_quantized = False
        return model

    def _dequantize(self, model: "PreTrainedModel", dtype: torch.dtype | None = None) -> "PreTrainedModel":
        from .swap import restore_dense

        restore_dense(model)
        return model

    def get_state_dict_and_metadata(self, model: "PreTrainedModel") -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Factors in the dtype of `codes`, where that is narrower than the model's.

        transformers saves what this returns in place of the `state_dict` its caller passed, which under FSDP is the
        only complete one. Nothing hands it over, so it is read from the caller's frame; None means the model's own.
        """
        state: dict[str, Tensor] | None = sys._getframe(1).f_locals.get("state_dict")
        codes = self.quantization_config.codes
        if codes not in FLOAT_CODES:
            return state, {}
        dtype: torch.dtype = getattr(torch, codes)
        state = dict(model.state_dict() if state is None else state)
        narrowed: dict[int, Tensor] = {}  # by parameter, so that tied factors stay one tensor
        for name, module in model.named_modules(remove_duplicate=False):
            if not isinstance(module, FactorizedTable):
                continue
            for factor in module.factor_names():
                key = f"{name}.{factor}"
                # On the meta device while they are offloaded: transformers stores those as they come back.
                if key in state and not state[key].is_meta and dtype.itemsize < state[key].dtype.itemsize:
                    narrow = narrowed.setdefault(id(getattr(module, factor)), state[key].to(dtype))
                    if not torch.isfinite(narrow).all():
                        raise ProjclustError(
                            f"{key} has outgrown {codes}: set config.quantization_config.codes to None"
                        )
                    state[key] = narrow
        return state, {}


def register() -> None:
    """Tell transformers of the quantization method; a second call changes nothing."""
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault("projclust", ProjClustConfig)
    AUTO_QUANTIZER_MAPPING.setdefault("projclust", ProjClustHfQuantizer)


def stored_shape(config: ProjClustConfig) -> "Shape | CodedShape":
    """The shape that config.json states.

    Raises:
        CheckpointError: it states an impossible one.
    """
    from .swap import Shape

    try:
        config.check_shapes()
    except ValueError as error:
        raise CheckpointError(f"damaged checkpoint: {error}") from None
    if config.version == CODED_FORMAT:
        return config.coded_shape()
    n, d = int(config.num_embeddings or 0), int(config.embedding_dim or 0)  # positive, as checked above
    shape = Shape(n, d, config.n_clusters, config.rank, config.affine)
    if config.cluster_ranks is None or config.cluster_sizes is None:
        return shape
    return replace(shape, ranks=tuple(config.cluster_ranks), sizes=tuple(config.cluster_sizes))


def check_stored_factors(files: list[str], shape: "Shape | CodedShape") -> None:
    """Compare the factors' shapes in the safetensors headers with the ones config.json states.

    What is missing shows after the load; names are no help before it, since transformers renames some on their way.

    Raises:
        CheckpointError: a file cannot be read, or a factor has another shape.
    """
    stored = read_headers([Path(file) for file in files if Path(file).suffix == ".safetensors"])
    mark = "decoder_scales" if isinstance(shape, CodedShape) else "bases"
    for prefix in [key.removesuffix(mark) for key in stored if key == mark or key.endswith(f".{mark}")]:
        for factor, wanted in shape.stored.items():
            found = stored.get(prefix + factor)
            if found is not None and found.shape != wanted:
                raise CheckpointError(
                    f"damaged checkpoint: {prefix}{factor} has shape {list(found.shape)}, expected {list(wanted)}"
                )


def _check_loaded_factors(table: FactorizedTable) -> None:
    if hasattr(table, "_hf_hook"):
        return  # dispatched by accelerate, whose hooks wrap the parameters anew: nothing to read here
    for name in [*table.factor_names(), *(["clusters"] if table.primary is table else [])]:
        tensor = getattr(table, name)
        if table.primary is not table and tensor is getattr(table.primary, name):
            continue  # tied: checked there
        # transformers marks every tensor it read; one without the mark would be uninitialised memory.
        if not getattr(tensor, "_is_hf_initialized", False):
            raise CheckpointError(f"damaged checkpoint: the embedding's {name} is missing")
        if tensor.is_meta:
            continue
        if name == "clusters":
            if int(tensor.max()) >= table.n_clusters or int(tensor.min()) < 0:
                raise CheckpointError(f"damaged checkpoint: a cluster id lies outside 0 .. {table.n_clusters - 1}")
            sizes = torch.bincount(tensor.long(), minlength=table.n_clusters).tolist()
            if table.cluster_sizes not in (None, sizes):
                raise CheckpointError("damaged checkpoint: the clusters have other sizes than config.json states")
        elif not torch.isfinite(tensor).all():
            raise CheckpointError(f"damaged checkpoint: the embedding's {name} has NaN or infinite entries")


def _check_loaded_codes(table: CodedTable) -> None:
    for name in table.shape.stored:
        if not getattr(getattr(table, name), "_is_hf_initialized", False) and not hasattr(table, "_hf_hook"):
            raise CheckpointError(f"damaged checkpoint: the embedding's {name} is missing")
    try:
        table.prepare()
    except ProjclustError as error:
        raise CheckpointError(f"damaged checkpoint: {error}") from None


register()
