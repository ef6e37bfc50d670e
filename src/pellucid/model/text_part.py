"""The text model of a checkpoint that also has parts for images or sounds (``...ForConditionalGeneration``).

The table ``text_config`` is the configuration of the text model. The tensor names of the text model begin with
"language_model." or "model.language_model.". The text model is read as if the checkpoint contained nothing else. A
warning reports the other parts, which are not loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pellucid.errors import FileFormatError, shown
from pellucid.model.config import Config
from pellucid.model.weight_map import Model, Slot
from pellucid.weights.checkpoint import Checkpoint, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TABLE = "text_config"
MARK = "language_model."
ALONE = ("model.", "lm_head.")
"""Prefixes of tensor names in a checkpoint that contains only the text model."""
TIED = "tie_word_embeddings"
SHARED = (TIED, "bos_token_id", "eos_token_id", "pad_token_id")
"""Keys that may be at the top level or in ``text_config``."""


class TextPart:
    """A view of a `Checkpoint` with only the text model. ``original`` maps its tensor names to names in the file."""

    kind = "safetensors"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path: Path = checkpoint.path
        self._whole = checkpoint
        table = checkpoint.metadata[TABLE]
        above = {key: value for key, value in checkpoint.metadata.items() if key in SHARED}
        self.metadata: Mapping[str, object] = {**above, **table}
        # A tied head at the top level takes precedence, because the head belongs to the whole model.
        if above.get(TIED) is True:
            self.metadata = {**self.metadata, TIED: True}
        marked = any(MARK in name for name in checkpoint.tensors)
        named = {name: _alone(name, marked) for name in checkpoint.tensors}
        self.original: dict[str, str] = {}
        for name, own in named.items():
            if own and (other := self.original.setdefault(own, name)) != name:
                raise FileFormatError(checkpoint.path, name, f"is the same tensor of the text model as {shown(other)}")
        self.tensors: Mapping[str, Tensor] = {own: checkpoint.tensors[name] for own, name in self.original.items()}
        self.others = [name for name, own in named.items() if not own]

    def config(self, parent: Config) -> Config:
        """The configuration of the text model, with the task that the user asks for."""
        return replace(parent, values=self.metadata, prefix="", parent=f"{TABLE}.", aliases={})

    def in_file(self, model: Model) -> Model:
        """The model with the tensor names of the file. Warns about parts that are not loaded."""

        def named(source: Slot) -> Slot:
            return replace(source, tensor=self.original[source.tensor])

        slots = {slot: tuple(map(named, model.sources(slot))) for slot in model.slots}
        if self.others:
            parts = sorted({name.removeprefix("model.").partition(".")[0] for name in self.others})
            warnings.warn(
                f"{self.path.name}: only the text model is read; not read: {', '.join(map(shown, parts[:4]))} "
                f"({len(self.others):,} tensor{'s' * (len(self.others) != 1)})",
                stacklevel=3,
            )
        return replace(model, slots=slots, ignored=tuple(map(named, model.ignored)))

    def data(self, name: str) -> NDArray[np.uint8]:
        return self._whole.data(self.original[name])

    def read(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        self._whole.read(self.original[name], start, out)

    def file_facts(self) -> list[tuple[str, int, int, int]]:
        return self._whole.file_facts()

    def check_unchanged(self) -> None:
        self._whole.check_unchanged()

    def close(self) -> None:
        self._whole.close()


def _alone(name: str, marked: bool) -> str:
    """The name of a tensor in a checkpoint of only the text model; "" if the tensor belongs to another part."""
    before, mark, rest = name.partition(MARK)
    if mark and before in ("", "model."):
        return f"{before}{rest}"
    own = ("lm_head.",) if marked else ALONE
    return name if name.startswith(own) else ""
