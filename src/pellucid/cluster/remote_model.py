"""A model on replicas: its requests are checked here, as for every model, and run on the engines of the replicas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid import pipeline
from pellucid.base_llm import BaseLLM
from pellucid.cluster import wire
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_request import RemoteRequest, called, sent_options
from pellucid.decide.decider import Decider
from pellucid.decide.questions import Decisions, questions_of, state_of
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.output import Beams
from pellucid.engine.request import RequestOptions
from pellucid.engine.state import EngineState, ReplicaStates
from pellucid.errors import InvalidRequest
from pellucid.loading import OpenModel
from pellucid.plan.bind import layouts
from pellucid.plan.points import Point
from pellucid.sample.beams import BeamOptions
from pellucid.trace.budget import MOST_LIMIT
from pellucid.trace.edits import Edit, listed
from pellucid.trace.frames import TraceStream
from pellucid.trace.output_points import all_points
from pellucid.trace.trace import Trace
from pellucid.tracing import DIVIDED, STREAMED

T = TypeVar("T")
NAMES = [field.name for field in fields(EngineState) if field.name != "stage_seconds"]


@dataclass(frozen=True)
class FleetBackend:
    """Runs requests on the replicas of a fleet. Do not call ``search`` in the thread of the fleet's event loop."""

    fleet: Fleet
    most_answers = wire.MAX_SEQUENCES

    def submit(
        self, inputs: Inputs, prompt: PromptInput, options: RequestOptions, n: int = 1, resumed: Sequence[int] = ()
    ) -> RemoteRequest:
        return RemoteRequest(self.fleet, inputs, prompt, options, n, resumed)

    def search(self, inputs: Inputs, prompt: PromptInput, options: RequestOptions, beams: BeamOptions) -> Beams:
        ids, chain, scheduling = inputs.prompt(prompt), options.generation.chain(), options.scheduling
        body = {
            "prompt": ids,
            "options": {**sent_options(options, chain), **wire.plain_options(vars(beams))},
            "edits": wire.edits_fields(options.edits),
            "priority": scheduling.priority,
            "deadline": scheduling.deadline,
            "client": scheduling.client,
        }
        return wire.beams_of(self.wait(called(self.fleet, "beams", ids, body)), chain.steps)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, which runs in the fleet's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.fleet.loop).result()

    def state(self) -> EngineState:
        """The sum of all replicas' states, without the times of stages. ``threads`` is the maximum instead."""
        states = [link.state for link in self.fleet.links if link.up and link.state]
        sums = {name: sum(getattr(state, name) for state in states) for name in NAMES}
        sums["waiting"] += self.fleet.waiting
        sums["threads"] = max((state.threads for state in states), default=0)
        return EngineState(**sums)

    def replica_states(self) -> ReplicaStates:
        fleet = self.fleet
        return ReplicaStates(
            {link.load.name: link.state if link.up else None for link in fleet.links},
            fleet.moved,
            fleet.prefix_hits,
            fleet.prefix_queries,
        )


class RemoteModel(BaseLLM[RemoteRequest]):
    """A model whose requests run on the replicas of a fleet. This process opens its file but loads no weights.

    Do not call blocking methods in the thread of the fleet's event loop. ``stages`` is the number of stages of each
    replica. The ``signer`` of receipts is in this process alone.
    """

    weight_bytes = 0

    def __init__(self, opened: OpenModel, fleet: Fleet, stages: int = 1) -> None:
        backend, points = FleetBackend(fleet), partial(_points, opened)
        unwatched = DIVIDED if stages > 1 else ""
        super().__init__(opened.checkpoint, opened.model, opened.inputs, opened.recommended, backend, points, unwatched)
        self.opened, self.fleet, self._wait = opened, fleet, backend.wait
        self._decider = cache(partial(Decider, opened.checkpoint, opened.inputs))

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
        names = self.points
        if options.get("probes"):
            raise InvalidRequest(STREAMED)
        request = self.request(prompt, resumed=resumed, **options)
        if request.watching is None:  # nobody else can watch it
            request.watching = Trace(names, ()).watching()
        return request, request.stream_values(names, points, MOST_LIMIT, norms=norms, own=True)

    def _watch(
        self, request: RemoteRequest, names: Sequence[str], limit: int, notify: Callable[[], object]
    ) -> TraceStream:
        return request.stream_values(self.points, names, limit, notify)

    async def look(self, what: str, name: str, fields: Mapping[str, Any]) -> bytes:
        """Run POST /look/WHAT for the model ``name`` with these body fields, and return the JSON response.

        Call this in the fleet's event loop. Raises: as the functions of ``look/queries.py``, which run on a replica.
        """
        try:
            encoded = json.dumps(fields).encode()
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply to be sent to a replica") from None
        # The prefix cache does not matter for these calls. The router gets a checksum in place of a prompt, so that it
        # spreads the calls over the replicas.
        body = {"name": name, "fields": encoded, "client": self.scheduling.client}
        answer: bytes = await called(self.fleet, f"look/{what}", [crc32(encoded)], body)
        return answer

    @property
    def decider(self) -> Decider:
        return self._decider()

    def decide(self, state: Any, questions: Mapping[str, Any], *, explain: bool = False) -> Decisions:
        """As ``LLM.decide``, on the replica whose prefix cache fits the state best."""
        asked, read = questions_of(questions), state_of(state)
        if explain:
            self.decider.check_explains()
        prompts = self.decider.prompts(read, asked)
        fields = {"state": read, "questions": questions, "explain": explain}
        body = {"fields": json.dumps(fields).encode(), "client": self.scheduling.client}
        answer = self._wait(called(self.fleet, "decide", prompts[0].ids, body))
        return wire.decisions_of(json.loads(answer), asked)

    def encode(self, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None) -> list[NDArray[np.float32]]:
        body = {
            "texts": [[list(text.ids), text.types, text.first_output] for text in texts],
            "edits": wire.edits_fields(listed(edits or [])),
            "client": self.scheduling.client,
        }
        found = self._wait(called(self.fleet, "encode", texts[0].ids if texts else [], body))
        return [wire.array_of(fields) for fields in found]

    def close(self) -> None:
        """Close the file and the connections to replicas. Further calls have no effect."""
        self._wait(self.fleet.close())
        self.checkpoint.close()


def _points(opened: OpenModel) -> dict[str, Point]:
    packed = layouts(opened.checkpoint, opened.model)
    spec = opened.model.spec
    plan = pipeline.unoptimized_plan(spec, packed)
    if spec.encoder:
        plan = replace(plan, encoder=pipeline.encoder_plan(spec, packed))
    return all_points(plan, generates=spec.generates)
