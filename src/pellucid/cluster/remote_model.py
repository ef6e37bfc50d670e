"""A model on replicas, with the interface of a local model.

This process opens the model's file but loads no weights. The replicas run the engines.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid import pipeline
from pellucid.cluster import wire
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_request import RemoteRequest, called
from pellucid.decide.decider import Decider
from pellucid.decide.questions import Decisions, questions_of, state_of
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.job import DEFAULT_SCHEDULING, SchedulingOptions
from pellucid.engine.output import Beams
from pellucid.engine.probe import RequestTracer
from pellucid.engine.request import Request
from pellucid.engine.state import EngineState, ReplicaStates
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.loading import OpenModel
from pellucid.model.spec import ModelSpec
from pellucid.model.weight_map import Model
from pellucid.plan.bind import layouts
from pellucid.plan.points import Point
from pellucid.receipts.issuer import STOPPING, ReceiptIssuer, refuse_receipt
from pellucid.receipts.receipt import Signer
from pellucid.sample.beams import BeamOptions
from pellucid.sample.options import Options
from pellucid.sample.recommended import recommended_beams, with_recommended
from pellucid.tokenize import Tokenizer
from pellucid.trace.budget import MOST_LIMIT
from pellucid.trace.control_vector import NO_VECTORS, RegisteredVectors
from pellucid.trace.edits import Edit, listed
from pellucid.trace.frames import TraceStream
from pellucid.trace.linear_probe import LinearProbe
from pellucid.trace.output_points import all_points
from pellucid.trace.request_trace import request_trace
from pellucid.trace.trace import Trace
from pellucid.tracing import BEAMS, DIVIDED, STREAMED, refuse_watched
from pellucid.util.checks import whole
from pellucid.weights.checkpoint import Checkpoint

T = TypeVar("T")
NAMES = [field.name for field in fields(EngineState) if field.name != "stage_seconds"]


class RemoteModel:
    """A ``serve.served_model.ServedModel`` whose requests run on the replicas of a fleet.

    Do not call blocking methods in the thread of the fleet's event loop. ``stages`` is the number of stages of each
    replica. The ``signer`` of receipts is in this process alone.
    """

    def __init__(self, opened: OpenModel, fleet: Fleet, stages: int = 1) -> None:
        self.fleet = fleet
        self.signer: Signer | None = None
        self._opened, self._stages = opened, stages
        self._scheduling = DEFAULT_SCHEDULING
        self._points = cache(self._all_points)
        self._decider = cache(partial(Decider, opened.checkpoint, opened.inputs))
        self.vectors: RegisteredVectors = NO_VECTORS
        self._recommended_beams = recommended_beams(opened.checkpoint) if opened.model.spec.encoder else {}

    def for_client(self, client: str) -> RemoteModel:
        """As ``LLM.for_client``."""
        own = copy.copy(self)
        own._scheduling = SchedulingOptions(client=client)
        return own

    @property
    def checkpoint(self) -> Checkpoint:
        """The model's file."""
        return self._opened.checkpoint

    @property
    def model(self) -> Model:
        """As in ``LLM``."""
        return self._opened.model

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self._opened.model.spec

    @property
    def inputs(self) -> Inputs:
        """Turns prompts into token ids."""
        return self._opened.inputs

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self.inputs.tokenizer

    @property
    def recommended(self) -> Mapping[str, Any]:
        """The options that the file recommends."""
        return self._opened.recommended

    @property
    def context(self) -> int:
        """Maximum tokens of a prompt and its generated text together."""
        return self.inputs.context

    @property
    def width(self) -> int:
        """Columns of the output: V for a language model, D for an encoder."""
        return self.spec.output_width

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in this process: none."""
        return 0

    def request(
        self, prompt: PromptInput, n: int = 1, /, *, resumed: Sequence[int] = (), **options: Any
    ) -> RemoteRequest:
        """Make and check a request for ``n`` sequences, but do not start it. Takes the options of ``LLM.generate``.

        Raises: the errors of ``LLM.request``, and InvalidRequest if an option is a function, because functions cannot
            be sent.
        """
        edits, probes = self.vectors.taken_from(options, lambda: self.points)
        watching = self._checked(edits, probes)
        scheduling = self._scheduling.with_options(options)
        options = with_recommended(options, self.recommended)
        parsed = Options.of(**options)
        if resumed:
            refuse_receipt(parsed, "the request continues an earlier answer")
        if self._stages > 1:
            refuse_receipt(parsed, "the model runs in stages on several machines")
        if any(probe.stop_above is not None for probe in probes):
            refuse_receipt(parsed, STOPPING)
        receipts = ReceiptIssuer(options, edits, signer=self.signer) if parsed.receipt else None
        n = whole("n", n, 1, wire.MAX_SEQUENCES)
        ids = self.inputs.prompt(prompt)
        chain = parsed.chain()
        # Refuse invalid options here, before the response begins. A replica would refuse them later.
        ends = parsed.ends(self.tokenizer, self.inputs.vocabulary)
        chain.start(self.tokenizer, ids, ends, vocabulary=self.inputs.vocabulary).end()
        sent = {**options, "seed": chain.seed} if not chain.greedy else options
        read = self.inputs.decoder_prompt(ids, resumed)
        if watching is not None:
            most = len(read) + self.inputs.answer_limit(read, parsed.max_new_tokens) - 1
            first_output = 0 if parsed.prompt_logprobs is not None else len(read) - 1
            watching.begin(read, most=most, first_output=first_output)
        request = RemoteRequest(
            self.fleet, ids, _plain(sent), parsed, chain.with_seeds(n), scheduling, edits, resumed, len(read), probes
        )
        request.watching, request.receipts = watching, receipts
        request.limit = self.inputs.answer_limit(read, parsed.max_new_tokens)
        return request

    def request_with_values(
        self,
        prompt: PromptInput,
        points: Sequence[str],
        norms: Sequence[str] = (),
        /,
        *,
        resumed: Sequence[int] = (),
        **options: Any,
    ) -> tuple[RemoteRequest, TraceStream]:
        """As ``LLM.request_with_values``."""
        names = self.points
        if options.get("probes"):
            raise InvalidRequest(STREAMED)
        request = self.request(prompt, resumed=resumed, **options)
        if request.watching is None:  # nobody else can watch it
            request.watching = Trace(names, ()).watching()
        return request, request.watch(names, points, MOST_LIMIT, norms=norms, own=True)

    def _checked(self, edits: Sequence[Edit], probes: Sequence[LinearProbe]) -> RequestTracer | None:
        """Return a tracer that checks the edits and probes of a request (None without them).

        Raises:
            InvalidRequest: an edit or a probe does not fit the model, or the edits have too many values.
        """
        watching = request_trace(lambda: self.points, edits, probes, self.tokenizer.piece)
        size = sum(np.size(edit.values) * 4 for edit in edits if edit.values is not None)
        if size > wire.MAX_FRAME // 2:
            raise InvalidRequest(
                f"edits has {size >> 20:,} MiB of values; the limit is {wire.MAX_FRAME >> 21} MiB: change less"
            )
        return watching

    @property
    def points(self) -> dict[str, Point]:
        """As ``LLM.points``."""
        return self._points()

    def _all_points(self) -> dict[str, Point]:
        if self._stages > 1:
            raise InvalidRequest(DIVIDED)
        checkpoint, model = self._opened.checkpoint, self._opened.model
        packed = layouts(checkpoint, model)
        plan = pipeline.unoptimized_plan(model.spec, packed)
        if model.spec.encoder:
            plan = replace(plan, encoder=pipeline.encoder_plan(model.spec, packed))
        return all_points(plan, generates=model.spec.generates)

    def watch(self, request: Request, names: Sequence[str], limit: int, notify: Callable[[], object]) -> TraceStream:
        """As ``LLM.watch``, on the replica that runs the request."""
        assert isinstance(request, RemoteRequest)
        refuse_watched(request)
        return request.watch(self.points, names, limit, notify)

    async def look(self, what: str, name: str, fields: Mapping[str, Any]) -> bytes:
        """As ``serve.served_model.ModelElsewhere``, in the fleet's event loop."""
        try:
            encoded = json.dumps(fields).encode()
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply to be sent to a replica") from None
        # The prefix cache does not matter for these calls. The router gets a checksum in place of a prompt, so that it
        # spreads the calls over the replicas.
        body = {"name": name, "fields": encoded, "client": self._scheduling.client}
        answer: bytes = await called(self.fleet, f"look/{what}", [crc32(encoded)], body)
        return answer

    def beam_search(self, prompt: PromptInput, **options: Any) -> Beams:
        """Find the best continuations of a prompt, as ``LLM.beam_search``."""
        if self.spec.encoder:
            recommended = with_recommended(options, self.recommended)
            options = {**self._recommended_beams, **recommended}
        if options.pop("probes", None):
            raise InvalidRequest(BEAMS)
        beams = BeamOptions.taken_from(options)
        parsed = Options.of(vars(beams), **options)
        ids, chain = self.inputs.prompt(prompt), parsed.chain()
        sent = {**options, "seed": chain.seed} if not chain.greedy else options
        client = self._scheduling.client
        body = {"prompt": ids, "options": _plain({**sent, **vars(beams)}), "client": client}
        return wire.beams_of(self._wait(called(self.fleet, "beams", ids, body)), chain.steps)

    @property
    def decider(self) -> Decider:
        """As ``LLM.decider``."""
        return self._decider()

    def decide(self, state: Any, questions: Mapping[str, Any], *, explain: bool = False) -> Decisions:
        """As ``LLM.decide``, on the replica whose prefix cache fits the state best."""
        asked, read = questions_of(questions), state_of(state)
        if explain:
            self.decider.check_explains()
        prompts = self.decider.prompts(read, asked)
        fields = {"state": read, "questions": questions, "explain": explain}
        body = {"fields": json.dumps(fields).encode(), "client": self._scheduling.client}
        answer = self._wait(called(self.fleet, "decide", prompts[0].ids, body))
        return wire.decisions_of(json.loads(answer), asked)

    def encode(self, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None) -> list[NDArray[np.float32]]:
        """Run texts through an encoder, as ``LLM.encode``."""
        body = {
            "texts": [[list(text.ids), text.types, text.first_output] for text in texts],
            "edits": [wire.edit_fields(edit) for edit in listed(edits or [])],
            "client": self._scheduling.client,
        }
        found = self._wait(called(self.fleet, "encode", texts[0].ids if texts else [], body))
        return [wire.array_of(fields) for fields in found]

    def state(self) -> EngineState:
        """Return the sum of all replicas' states, without the times of stages. ``threads`` is the maximum instead."""
        states = [link.state for link in self.fleet.links if link.up and link.state]
        sums = {name: sum(getattr(state, name) for state in states) for name in NAMES}
        sums["waiting"] += self.fleet.waiting
        sums["threads"] = max((state.threads for state in states), default=0)
        return EngineState(**sums)

    def replica_states(self) -> ReplicaStates:
        """State of each replica."""
        fleet = self.fleet
        return ReplicaStates(
            {link.load.name: link.state if link.up else None for link in fleet.links},
            fleet.moved,
            fleet.prefix_hits,
            fleet.prefix_queries,
        )

    def close(self) -> None:
        """Close the file and the connections to replicas. Further calls have no effect."""
        self._wait(self.fleet.close())
        self.checkpoint.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.fleet.loop).result()


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the options after checking that all values can be sent.

    Raises:
        InvalidRequest: a value is a function or another object that cannot be sent.
    """
    for name, value in options.items():
        try:
            wire.pack([["option", value]])
        except (TypeError, ValueError, OverflowError):
            raise InvalidRequest(f"{name}={brief(value)}: cannot be sent to a replica: give plain values") from None
    return dict(options)
