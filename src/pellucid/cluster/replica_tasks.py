"""The tasks that a replica runs for an ingress.

The tasks are generation, encoding, decisions, beam searches, and queries about the model's values (``serve/look``).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from pellucid.cluster import wire
from pellucid.cluster.remote_trace import NumberedRequest, RequestWatch
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.job import SchedulingOptions
from pellucid.engine.local_request import LocalRequest
from pellucid.engine.output import TokenOutput
from pellucid.engine.request import RequestOptions
from pellucid.errors import InvalidRequest, brief
from pellucid.llm import LLM
from pellucid.receipts.issuer import ReceiptIssuer
from pellucid.sample.options import Options
from pellucid.serve.look.queries import QUERIES
from pellucid.serve.look.trace_reading import TRACE, TraceReading
from pellucid.serve.pool import MOST_WORK
from pellucid.serve.routes import run_groups
from pellucid.trace.linear_probe import listed_probes

# The messages that a replica has sent for each named request. An ingress can ask for these messages again.

MAX_REQUESTS = 512
"""Maximum number of requests that are remembered by name."""
MAX_BYTES = 256 << 20
"""Maximum bytes of the messages of all remembered requests together."""


@dataclass(eq=False)
class ReplicaRequest:
    """A request of an ingress. ``sender`` is the ingress's connection, ``number`` the ingress's number of the request.

    Any ingress can ask for the messages of the request again, by ``name``.
    """

    sender: bytes
    number: int
    name: str
    messages: list[list[Any]] = field(default_factory=list)
    """Messages sent so far. They are kept while the log knows the name."""
    bytes: int = 0
    task: asyncio.Task[None] | None = None
    watch: RequestWatch | None = None
    ended: float | None = None
    complete: bool = True
    """False if another replica began the request. ``messages`` then lacks the messages of the other replica."""

    def cancel(self) -> None:
        if self.task:
            self.task.cancel()


class RequestLog:
    """Requests by name. The limits are ``max_requests`` requests and ``max_bytes`` of messages in all.

    Beyond a limit the log forgets the oldest request that has ended. If no request has ended, it forgets the oldest
    request, which continues to run. Callers hold one lock while they use the log.
    """

    def __init__(self, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._requests: dict[str, ReplicaRequest] = {}  # the oldest first
        self.bytes = 0
        """Estimated size of all messages."""

    def __len__(self) -> int:
        return len(self._requests)

    def get(self, name: str) -> ReplicaRequest | None:
        """Return the request of a name, with its messages; None if the name is unknown."""
        return self._requests.get(name)

    def add(self, request: ReplicaRequest) -> None:
        """Add a request. It replaces an earlier request of the same name.

        A request that another replica began is not added.
        """
        if before := self._requests.get(request.name):
            self.forget(before)
        if request.name and request.complete:
            self._requests[request.name] = request
            self._shrink()

    def keep(self, request: ReplicaRequest, message: list[Any]) -> None:
        """Keep a message if the log knows its request."""
        if self._requests.get(request.name) is request:
            size = _size(message)
            request.messages.append(message)
            request.bytes += size
            self.bytes += size
            self._shrink()

    def forget(self, request: ReplicaRequest) -> None:
        """Forget a request. If another request has taken its name, do nothing."""
        if self._requests.get(request.name) is request:
            del self._requests[request.name]
            self.bytes -= request.bytes
            request.messages, request.bytes = [], 0

    def forget_ended(self, before: float) -> None:
        """Forget requests that ended before a time."""
        for request in list(self._requests.values()):
            if request.ended is not None and request.ended < before:
                self.forget(request)

    def _shrink(self) -> None:
        while len(self._requests) > self._max_requests or self.bytes > self._max_bytes:
            ended = (request for request in self._requests.values() if request.ended is not None)
            self.forget(next(ended, next(iter(self._requests.values()))))


def _size(value: Any) -> int:
    """Approximate bytes of a plain value."""
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    more = sum(map(_size, inner)) if isinstance(value, (list, tuple, dict)) else 0
    return sys.getsizeof(value) + more


Tell: TypeAlias = Callable[..., object]
"""Function that sends a message, given its kind and fields. Any thread may call it."""
LOOKING = ThreadPoolExecutor(MOST_WORK, "pellucid-look")
"""Separate threads for work that cannot be cancelled, so that this work does not delay requests."""


async def generate(llm: LLM, body: Mapping[str, Any], tell: Tell, watch: RequestWatch) -> None:
    """Generate the sequences ``numbers`` of a prompt. A sequence with tokens in ``begun`` continues these tokens."""
    if body["watch"]:
        watch.hear("watch", *body["watch"])
    requests = await asyncio.to_thread(_requests, llm, body, watch)
    watch.begin(requests)
    try:
        for numbered in requests:
            numbered.request.start(partial(_tell_token, numbered, tell, watch), partial(tell, "began"))
        for _, _, request in requests:
            await request.finished()
    finally:
        for _, _, request in requests:
            request.close()
        await watch.flush()
    counts = {
        number: list(pair) for numbers, _, request in requests for number, pair in zip(numbers, request.speculation)
    }
    tell("end", counts)


def _requests(llm: LLM, body: Mapping[str, Any], watch: RequestWatch) -> list[NumberedRequest]:
    """Return the local requests of a body: one request for all new sequences, and one for each continued sequence.

    Raises:
        WireError: ``numbers`` is not a list of different numbers below the limit.
    """
    numbers = _numbers(body["numbers"])
    begun = {int(number): pairs for number, pairs in body["begun"].items()}
    options = Options.of(**body["options"])
    seeded = options.chain().with_seeds(max(numbers) + 1)
    requests = list[NumberedRequest]()
    make = partial(LocalRequest, llm.engine, llm.inputs, body["prompt"])
    edits = [wire.edit_of(fields) for fields in body["edits"]]
    # The ingress makes the receipts. It needs the digests of the logits and the identity of this model.
    receipts = ReceiptIssuer({}, (), llm.identity()) if options.receipt else None
    probes = listed_probes([wire.probe_of(fields) for fields in body["probes"]])
    scheduling = SchedulingOptions(body["priority"], body["deadline"], body["client"])
    if fresh := [number for number in numbers if not begun.get(number)]:
        chains, watching = [seeded[number] for number in fresh], watch.watching(fresh, edits, probes)
        requests.append(
            NumberedRequest(fresh, 0, make(RequestOptions(options, scheduling, watching, receipts), chains))
        )
    for number in numbers:
        if pairs := begun.get(number):
            rest = dict(body["options"])
            if rest.get("max_new_tokens") is not None:
                rest["max_new_tokens"] -= len(pairs)
            before = [(int(token), float(p)) for token, p in pairs]
            first = watch.first_output(number, int(body["read"]))
            watching = watch.watching([number], edits, probes)
            rest_options = RequestOptions(Options.of(**rest), scheduling, watching, receipts)
            request = make(rest_options, [seeded[number]], before, first_output=first)
            requests.append(NumberedRequest([number], len(pairs), request))
    return requests


def _numbers(value: Any) -> list[int]:
    """Return the numbers of sequences after checking them. Raises WireError."""
    listed = value if isinstance(value, list) else []
    numbers = [number for number in listed if type(number) is int and 0 <= number < wire.MAX_SEQUENCES]
    if not numbers or len(numbers) != len(listed) or len(set(numbers)) != len(numbers):
        raise wire.WireError(f"numbers={brief(value)}: must be different numbers below {wire.MAX_SEQUENCES}")
    return numbers


def _tell_token(numbered: NumberedRequest, tell: Tell, watch: RequestWatch, token: TokenOutput) -> None:
    """Send a generated token. The engine's thread calls this."""
    (numbers, resumed, request), at = numbered, token.sequence
    index = resumed + len(request.outputs[at].ids) - 1
    if index == resumed and at == 0:
        watch.after_frames(partial(tell, "facts", *wire.facts_fields(request.prompt_output)))
    watch.after_frames(partial(tell, "token", numbers[at], index, *wire.token_fields(token)))


async def encode(llm: LLM, body: Mapping[str, Any], tell: Tell, _: RequestWatch) -> None:
    """Run texts through an encoder."""
    texts = [EncoderInput(*text) for text in body["texts"]]
    edits = [wire.edit_of(edit) for edit in body["edits"]]
    rows = await asyncio.to_thread(_own(llm, body).encode, texts, edits)
    tell("done", [wire.array_fields(one) for one in rows])


async def decide(llm: LLM, body: Mapping[str, Any], tell: Tell, _: RequestWatch) -> None:
    """Answer questions about a state."""
    made = partial(_own(llm, body).decide, **_fields(body))
    _tell_json(tell, json.dumps(wire.decisions_fields(await asyncio.to_thread(made))))


async def beams(llm: LLM, body: Mapping[str, Any], tell: Tell, _: RequestWatch) -> None:
    """Run a beam search."""
    edits = [wire.edit_of(edit) for edit in body["edits"]] or None
    scheduling = {name: body[name] for name in ("priority", "deadline")}
    search = partial(_own(llm, body).beam_search, body["prompt"], edits=edits, **scheduling, **body["options"])
    tell("done", wire.beams_fields(await asyncio.to_thread(search)))


async def trace(llm: LLM, body: Mapping[str, Any], tell: Tell, _: RequestWatch) -> None:
    """Record values of a prompt and of its continuation. Cancelling this coroutine also cancels its requests."""
    reading = await asyncio.to_thread(TraceReading.of, TRACE.decode(_fields(body)), _own(llm, body))
    await run_groups(reading.groups)
    _tell_json(tell, await asyncio.to_thread(lambda: json.dumps(reading.answer(body["name"], ""))))


async def look(what: str, llm: LLM, body: Mapping[str, Any], tell: Tell, _: RequestWatch) -> None:
    """Run the query ``what`` of ``QUERIES``, and send the result."""
    query, own = QUERIES[what], _own(llm, body)
    fields = query.body.decode(_fields(body))
    made = asyncio.get_running_loop().run_in_executor(LOOKING, lambda: json.dumps(query.run(fields, own)))
    _tell_json(tell, await made)


def _own(llm: LLM, body: Mapping[str, Any]) -> LLM:
    """Return the model for the client of this body, so that the scheduler counts the requests for this client."""
    return llm.for_client(str(body["client"]))


def _fields(body: Mapping[str, Any]) -> Any:
    return json.loads(body["fields"])


def _tell_json(tell: Tell, text: str) -> None:
    """Send a JSON result in pieces. The JSON text is ASCII, as in the server's own responses."""
    if len(text) > wire.MAX_PIECES:
        raise InvalidRequest(
            f"a response of {len(text) >> 20:,} MiB; the limit is {wire.MAX_PIECES >> 20} MiB: request fewer values"
        )
    for piece, more in wire.pieces(text.encode()):
        tell("piece" if more else "done", piece)


TASKS: Mapping[str, Callable[[LLM, Mapping[str, Any], Tell, RequestWatch], Coroutine[Any, Any, None]]] = {
    "generate": generate,
    "encode": encode,
    "decide": decide,
    "beams": beams,
    "look/trace": trace,
    **{f"look/{what}": partial(look, what) for what in QUERIES},
}
"""Task functions by the kind in the ``run`` message."""
