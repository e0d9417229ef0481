"""Checkpoints loaded as sequence classifiers, whose labels stand in the order of a task's."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from projclust.checkpoints.load import check_layers, from_pretrained, mismatched
from projclust.checkpoints.source import CONFIG, read_json
from projclust.checkpoints.tensors import read_headers, weight_files
from projclust.errors import CheckpointError, ProjclustError


@dataclass(frozen=True)
class Classifier:
    """A checkpoint loaded as a sequence classifier, in float32, its labels in the order that was asked for.

    Attributes:
        head_is_stored: whether the checkpoint holds a head for just these labels. Otherwise the head is newly
            initialised or, where it has as many labels of other names, only a place to start training from.
        is_named: whether it names its labels, so that their order is known.
    """

    model: PreTrainedModel
    head_is_stored: bool
    is_named: bool


def load_classifier(folder: Path, labels: tuple[str, ...]) -> Classifier:
    """Load a checkpoint to classify one or two texts; labels in the order of their numbers, none for regression.

    A head that names the same labels in another order comes with its outputs put in this one.
    """
    config = read_json(folder / CONFIG)
    check_layers(config, len(read_headers(weight_files(folder))), folder)
    stored = config.get("id2label")
    generic = tuple(f"LABEL_{index}" for index in range(max(len(labels), 1)))
    # transformers leaves out the names of two labels without names.
    names = ("LABEL_0", "LABEL_1") if stored is None else _label_names(stored)
    try:
        model, info = from_pretrained(
            transformers.AutoModelForSequenceClassification,
            "a classifier",
            folder,
            num_labels=len(generic),
            id2label=dict(enumerate(labels or generic)),
            label2id={name: index for index, name in enumerate(labels or generic)},
            problem_type="single_label_classification" if labels else "regression",
            dtype=torch.float32,
        )
    except CheckpointError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        kind = config.get("model_type")
        raise ProjclustError(f"transformers has no sequence classifier for models of type {kind}") from None
    body, replaced = f"{model.base_model_prefix}.", mismatched(info)  # a head for other labels is replaced
    if damaged := [name for name in replaced if name.startswith(body)]:
        raise CheckpointError(f"{folder} is damaged: {damaged[0]} has another shape than config.json asks for")
    # Encoders are often published without the pooler that a classifier reads; it is trained with the head.
    if lacking := sorted(name for name in info["missing_keys"] if name.startswith(body) and ".pooler." not in name):
        raise CheckpointError(f"{folder} holds no weights for {lacking[0]}")
    fresh = info["missing_keys"] or replaced
    found, wanted = [_plain(name) for name in names], [_plain(name) for name in labels]
    is_named = bool(labels) and sorted(found) == sorted(wanted)
    if is_named and not fresh and found != wanted:
        _reorder_head(model, [found.index(name) for name in wanted], folder)
    model.config.return_dict = True
    is_generic = found == [_plain(name) for name in generic]
    return Classifier(model, head_is_stored=not fresh and (is_named or is_generic), is_named=is_named or not labels)


def _label_names(id2label: Any) -> tuple[str, ...]:
    """The names in config.json in the order of their numbers; none where they are damaged."""
    try:
        return tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    except (TypeError, ValueError, KeyError):
        return ()


def _plain(name: str) -> str:
    """A label's name without what people write differently: `NOT ENTAILMENT` is `not_entailment`."""
    return re.sub(r"[\W_]+", "_", name.casefold())


def _reorder_head(model: PreTrainedModel, order: list[int], folder: Path) -> None:
    """Put the outputs of the head's last layer into another order: the first becomes the one numbered `order[0]`."""
    body = f"{model.base_model_prefix}."
    last = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == len(order) and not name.startswith(body)
    ]
    if len(last) != 1:
        raise ProjclustError(
            f"the labels of {folder} stand in another order than the task's, and which layer of "
            f"{type(model).__name__} puts them out cannot be told"
        )
    with torch.no_grad():
        for parameter in last[0].parameters():
            parameter.copy_(parameter[order].clone())
