"""The model that the tasks of encoders need, in this process or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.encoder_input import EncoderInput
from pellucid.engine.inputs import Inputs
from pellucid.model.spec import ModelSpec
from pellucid.tokenize import Tokenizer
from pellucid.trace.edits import Edit


class EncoderModel(Protocol):
    """A model with ``encode``."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def inputs(self) -> Inputs: ...
    def encode(
        self, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None
    ) -> list[NDArray[np.float32]]:
        """Run texts through the model. Returns the outputs of each text: (1, N) if the model pools, else (tokens, N).

        The texts run together in the engine's steps. A text's outputs have the same bits whatever else runs.
        """
        ...
