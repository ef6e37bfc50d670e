"""What the server needs of a model, which runs in this process (``LLM``) or elsewhere (``cluster/model.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.output import Beams
from pellucid.engine.state import EngineState, ReplicaStates
from pellucid.engine.text_group import TextGroup
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.model.spec import ModelSpec
from pellucid.tokenize import Tokenizer
from pellucid.weights.checkpoint import Checkpoint


class ServedModel(Protocol):
    """A model that answers requests. The members are those of ``LLM``."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def spec(self) -> ModelSpec: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def inputs(self) -> Inputs: ...
    @property
    def recommended(self) -> Mapping[str, Any]: ...
    @property
    def context(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def request(self, prompt: PromptInput, n: int = 1, /, **options: Any) -> TextGroup: ...
    def beam_search(self, prompt: PromptInput, **options: Any) -> Beams: ...
    def embed_tokens(self, encoded: Sequence[list[int]]) -> NDArray[np.float32]: ...
    def state(self) -> EngineState: ...
    def replica_states(self) -> ReplicaStates | None: ...
    def close(self) -> None: ...


def in_process(model: ServedModel) -> LLM:
    """A model of this process, whose values can be watched.

    Raises:
        InvalidRequest: it runs elsewhere.
    """
    if not isinstance(model, LLM):
        raise InvalidRequest(
            "the model runs on replicas, whose values cannot be watched from here: serve it without --cluster"
        )
    return model
