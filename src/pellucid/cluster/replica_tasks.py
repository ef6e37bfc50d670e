"""The tasks that a replica runs for an ingress.

The tasks are generation, encoding, decisions, beam searches, and queries about the model's values (``serve/look``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

from pellucid.cluster import wire
from pellucid.cluster.remote_trace import NumberedRequest, RequestWatch
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.job import SchedulingOptions
from pellucid.engine.local_request import LocalRequest
from pellucid.engine.output import TokenOutput
from pellucid.engine.request import RequestOptions
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.receipts.issuer import ReceiptIssuer
from pellucid.sample.options import Options
from pellucid.serve.look.queries import QUERIES
from pellucid.serve.look.trace_reading import TRACE, TraceReading
from pellucid.serve.pool import MOST_WORK
from pellucid.serve.routes import run_groups
from pellucid.trace.linear_probe import listed_probes

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
