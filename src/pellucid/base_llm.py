"""The requests of a model: the model checks them, and its backend runs them, here or on replicas."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.job import DEFAULT_SCHEDULING, SchedulingOptions
from pellucid.engine.output import Beams
from pellucid.engine.request import Backend, Request, RequestOptions
from pellucid.engine.state import EngineState, ReplicaStates
from pellucid.errors import InvalidRequest
from pellucid.generate_options import BeamSearchOptions
from pellucid.model.spec import ModelSpec
from pellucid.model.weight_map import Model
from pellucid.plan.points import Point
from pellucid.sample.options import Options
from pellucid.sample.recommended import recommended_beams, with_recommended
from pellucid.tokenize import Tokenizer
from pellucid.trace.budget import LIMIT
from pellucid.tracing import BEAMS, Tracing, warn_all
from pellucid.util.checks import whole
from pellucid.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # in ``typing`` since Python 3.11

    from pellucid.decide.decider import Decider
    from pellucid.decide.questions import Decisions
    from pellucid.receipts.receipt import ModelIdentity, Signer
    from pellucid.trace.control_vector import RegisteredVectors
    from pellucid.trace.edits import Edit
    from pellucid.trace.frames import TraceStream

OTHER_OPTIONS = ("priority", "deadline", "edits", "steer", "probes")
"""Options of a request that are not fields of ``Options``."""
R = TypeVar("R", bound=Request)


class BaseLLM(ABC, Generic[R]):
    """A model whose requests of type R run on a ``backend``: an engine of this process (``LLM``), or replicas.

    Attributes:
        checkpoint: the open model file, with its metadata and tensors.
        model: the spec, and the tensors of the file that fill its slots.
        inputs: checks prompts and turns them into token ids.
        recommended: the sampling options that the file recommends; they are the defaults of ``generate`` and ``chat``.
        recommended_beams: the options of beam search that the file of an encoder-decoder recommends.
        tracing: records and changes values of requests.
        signer: signs the receipts of requests; None: receipts are not signed.
        scheduling: the default scheduling options of requests.

    ``points`` finds the points of the model (``tracing``); ``unwatched`` is the reason why it has none.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Model,
        inputs: Inputs,
        recommended: Mapping[str, Any],
        backend: Backend[R],
        points: Callable[[], dict[str, Point]],
        unwatched: str = "",
        signer: Signer | None = None,
    ) -> None:
        self.checkpoint, self.model, self.inputs, self.backend = checkpoint, model, inputs, backend
        self.recommended = dict(recommended)
        self.recommended_beams = recommended_beams(checkpoint) if model.spec.encoder else {}
        self.tracing = Tracing(points, unwatched, inputs.tokenizer.piece)
        self.signer = signer
        self.scheduling = DEFAULT_SCHEDULING

    def for_client(self, client: str) -> Self:
        """The same model for one client. The scheduler divides compute time among clients, not among requests.

        Closing the returned object closes the model.
        """
        own = copy.copy(self)
        own.scheduling = SchedulingOptions(client=client)
        return own

    @property
    def spec(self) -> ModelSpec:
        """The architecture: family, dimensions, blocks."""
        return self.model.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """Text → token ids and back."""
        return self.inputs.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self.inputs = structs.replace(self.inputs, tokenizer=tokenizer)

    @property
    def context(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        return self.inputs.context

    @property
    def width(self) -> int:
        """Columns of the output: V for a language model, D for an encoder."""
        return self.spec.output_width

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the weights in this process."""

    @property
    def vectors(self) -> RegisteredVectors:
        """The control vectors and probes that requests may name (``steer``, ``probes``). All clients share them."""
        return self.tracing.vectors

    @vectors.setter
    def vectors(self, vectors: RegisteredVectors) -> None:
        self.tracing.vectors = vectors

    @property
    def unwatched(self) -> str:
        """The reason why values of the model cannot be traced and edited; "" if they can."""
        return self.tracing.unwatched

    @property
    def points(self) -> dict[str, Point]:
        """The values of a run that can be traced and edited, by name (``Tracing.points``)."""
        return self.tracing.points

    def request(self, prompt: PromptInput, n: int = 1, /, *, resumed: Sequence[int] = (), **options: Any) -> R:
        """Check a request for ``n`` answers without starting it, for programs that run many requests.

        Generation continues after the prompt and the tokens ``resumed``. Options and errors are as in
        ``LLM.generate``, and InvalidRequest if an option cannot be sent to the replica that would run it.
        """
        parsed = self._request_options(options)
        if resumed and parsed.generation.receipt:
            from pellucid.receipts.issuer import refuse_receipt

            refuse_receipt(parsed.generation, "the request continues an earlier answer")
        return self.backend.submit(self.inputs, prompt, parsed, whole("n", n, 1, self.backend.most_answers), resumed)

    def _request_options(self, options: dict[str, Any], stream: TraceStream | None = None) -> RequestOptions:
        """The options of a request: the given options, completed by the file's recommendations."""
        watching, edits, probes = self.tracing.watching(options, stream)
        scheduling = self.scheduling.with_options(options)
        given = with_recommended(options, self.recommended)
        generation, receipts = Options.of(OTHER_OPTIONS, **given), None
        if generation.receipt:
            from pellucid.receipts.issuer import STOPPING, ReceiptIssuer, refuse_receipt

            if self.unwatched:
                refuse_receipt(generation, "the model runs in stages on several machines")
            if any(probe.stop_above is not None for probe in probes):
                refuse_receipt(generation, STOPPING)
            receipts = ReceiptIssuer(given, edits, self._identity_here(), self.signer)
        return RequestOptions(generation, scheduling, watching, receipts, given, edits, probes)

    def _identity_here(self) -> ModelIdentity | None:
        """The identity of the model in receipts; None if a replica states it."""
        return None

    @abstractmethod
    def request_with_values(
        self,
        prompt: PromptInput,
        points: Sequence[str],
        norms: Sequence[str] = (),
        /,
        *,
        resumed: Sequence[int] = (),
        **options: Any,
    ) -> tuple[R, TraceStream]:
        """Check a request for one answer, and return also the stream of its values at ``points``.

        The stream reduces the points ``norms`` to the norms of their rows. Recorded positions are always computed. The
        values of a step arrive before its tokens. Takes ``resumed`` and options as ``request``; close the stream after
        the request.

        Raises: as ``request`` and ``TraceStream``.
        """

    def watch(
        self, request: R, names: Sequence[str], limit: int = LIMIT, notify: Callable[[], object] = lambda: None
    ) -> TraceStream:
        """Stream the values of points of a running request, from its next step until the stream is closed.

        Arguments and errors are as in ``TraceStream``, and InvalidRequest if the request has its own edits or trace.
        """
        if request.watching is not None:
            raise InvalidRequest("a request with its own edits or trace cannot be watched: watch another request")
        return self._watch(request, names, limit, notify)

    @abstractmethod
    def _watch(self, request: R, names: Sequence[str], limit: int, notify: Callable[[], object]) -> TraceStream: ...

    def beam_search(self, prompt: PromptInput, **options: Unpack[BeamSearchOptions]) -> Beams:
        """Find the best whole continuations of a prompt by beam search.

        ``options`` are the fields of ``BeamOptions``, such as ``num_beams``, and the options of ``generate``, except
        options that act on one text while it is generated: stop strings, ``until``, log-probabilities, ``watch``. In an
        encoder-decoder, the options that the file recommends are the defaults.

        Raises: as ``generate``.
        """
        from pellucid.sample.beams import BeamOptions

        given = dict[str, Any](options)
        if self.spec.encoder:
            given = {**self.recommended_beams, **with_recommended(given, self.recommended)}
        beams = BeamOptions.taken_from(given)
        self.tracing.refuse_frames("beam search has no texts before its end")
        if given.pop("probes", None):
            raise InvalidRequest(BEAMS)
        scheduling, (watching, edits, _) = self.scheduling.with_options(given), self.tracing.watching(given)
        generation = Options.of((*vars(beams), *OTHER_OPTIONS), **given)
        parsed = RequestOptions(generation, scheduling, watching, None, given, edits)
        result = self.backend.search(self.inputs, prompt, parsed, beams)
        if watching is not None:
            warn_all(watching.unused(result.usage.prompt_tokens + result.longest - 1))
        return result

    @abstractmethod
    def encode(self, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None) -> list[NDArray[np.float32]]:
        """Run tokens through an encoder. Returns the outputs of each text: (1, N) if the model pools, else (tokens, N).

        The texts run together in the engine's steps. A text's outputs have the same bits whatever else runs.

        Raises:
            InvalidRequest: ``texts`` is not a list of ``EncoderInput``.
        """

    @property
    @abstractmethod
    def decider(self) -> Decider:
        """Makes the prompts of decisions and reads their scores (``decide/decider.py``). Raises: as ``decide``."""

    @abstractmethod
    def decide(self, state: Any, questions: Mapping[str, Any], *, explain: bool = False) -> Decisions:
        """Answer typed questions about a state, as ``LLM.decide``."""

    async def look(self, what: str, name: str, fields: Mapping[str, Any]) -> bytes:
        """The JSON response of POST /look/WHAT with these body fields, of a model whose values are on a replica."""
        raise NotImplementedError

    def state(self) -> EngineState:
        """A snapshot of the engine's state; the sum of all replicas' states."""
        return self.backend.state()

    def replica_states(self) -> ReplicaStates | None:
        """The state of each replica; None for a model in this process."""
        return self.backend.replica_states()

    @abstractmethod
    def close(self) -> None:
        """End all requests and close the file. The model cannot be used afterwards."""
