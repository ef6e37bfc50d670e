"""A model that the server serves: in its own process (``LLM``) or on a cluster (``cluster/remote_model.py``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pellucid.encoders.tasks import EncoderModel
from pellucid.engine.inputs import PromptInput
from pellucid.engine.output import Beams
from pellucid.engine.request import Request
from pellucid.engine.state import EngineState, ReplicaStates
from pellucid.llm import LLM
from pellucid.trace.control_vector import RegisteredVectors
from pellucid.trace.frames import TraceStream
from pellucid.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pellucid.decide.decider import Decider
    from pellucid.decide.questions import Decisions


class ModelElsewhere(EncoderModel, Protocol):
    """A model whose engine runs in other processes. ``look`` answers queries of the page.

    The other methods are as in ``LLM``.
    """

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def recommended(self) -> Mapping[str, Any]: ...
    @property
    def context(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

    vectors: RegisteredVectors

    def for_client(self, client: str) -> ServedModel: ...
    def request(
        self, prompt: PromptInput, n: int = 1, /, *, resumed: Sequence[int] = (), **options: Any
    ) -> Request: ...
    def request_with_values(
        self,
        prompt: PromptInput,
        points: Sequence[str],
        norms: Sequence[str] = (),
        /,
        *,
        resumed: Sequence[int] = (),
        **options: Any,
    ) -> tuple[Request, TraceStream]: ...
    def beam_search(self, prompt: PromptInput, **options: Any) -> Beams: ...
    def watch(self, group: Request, names: Sequence[str], limit: int, notify: Callable[[], object]) -> TraceStream: ...
    @property
    def decider(self) -> Decider: ...
    def decide(self, state: Any, questions: Mapping[str, Any], *, explain: bool = False) -> Decisions: ...
    def state(self) -> EngineState: ...
    def replica_states(self) -> ReplicaStates | None: ...
    def close(self) -> None: ...
    async def look(self, what: str, name: str, fields: Mapping[str, Any]) -> bytes:
        """Run POST /look/WHAT for the model ``name`` with these body fields, and return the JSON response.

        Raises: as the functions of ``look/queries.py``, which run in the process of the engine.
        """
        ...


ServedModel: TypeAlias = LLM | ModelElsewhere
