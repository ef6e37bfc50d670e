"""Decision models with a head of their own: a projection to the scores of labels instead of tokens (Jev).

    scores = softcap(W x + b)      x: the normalised vector of a token

The options of a question have consecutive columns.
``config.json`` has ``model_type`` "jev", the configuration of the language model in ``text_config``, and
``num_verbalizers``, the number of columns. ``offsets`` are the first columns of each question type.

Source: ``transformers.models.jev.modeling_jev``, version 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from pellucid.errors import FileFormatError
from pellucid.errors.messages import brief
from pellucid.model.config import Config
from pellucid.model.outputs import Head
from pellucid.model.text_part import TABLE, TextPart
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint

MODEL_TYPE, WEIGHT, BIAS = "jev", "proj.weight", "proj.bias"
OFFSETS: Mapping[str, int] = {"noul": 0, "score": 2, "choice": 8}
"""The offsets of a file that states none."""


def is_headed(checkpoint: Checkpoint) -> bool:
    """True if a checkpoint is a decision model with a head of its own."""
    stated = checkpoint.kind == "safetensors" and checkpoint.metadata.get("model_type") == MODEL_TYPE
    return stated and isinstance(checkpoint.metadata.get(TABLE), Mapping)


def offsets_of(checkpoint: Checkpoint) -> dict[str, int]:
    """The first column of each question type.

    Raises:
        FileFormatError: they are no columns of the head.
    """
    stated = checkpoint.metadata.get("offsets")
    offsets: Any = dict(OFFSETS) if stated is None else stated
    columns = Config(checkpoint.metadata, checkpoint.path).count("num_verbalizers", 24)
    good = isinstance(offsets, dict) and set(offsets) == set(OFFSETS)
    if not good or not all(type(one) is int and 0 <= one < columns for one in offsets.values()):
        raise FileFormatError(
            checkpoint.path,
            "offsets",
            f"is {brief(stated)}: must be a column for each of {', '.join(OFFSETS)}",
        )
    return dict(offsets)


class HeadedPart(TextPart):
    """The language model of a headed checkpoint, with the tensors of the head."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        own = [name for name in (WEIGHT, BIAS) if name in checkpoint.tensors]
        self.original |= {name: name for name in own}
        self.tensors = {**self.tensors, **{name: checkpoint.tensors[name] for name in own}}
        self.others = [name for name in self.others if name not in own]

    def headed(self, model: Model) -> Model:
        """The model with the head of the file."""
        top = Config(self._whole.metadata, self.path)
        columns = top.count("num_verbalizers", 24)
        head = Head(tied=False, bias=True, softcap=top.optional_number("softcap", 0.0), labels=columns)
        slots = {**model.slots, "project.weight": Slot(WEIGHT), "project.bias": Slot(BIAS)}
        return replace(model, spec=replace(model.spec, head=head, task="decide"), slots=slots)
