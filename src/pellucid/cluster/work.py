"""Work of a replica for an ingress: generation, sentence vectors, beam searches and looks (``serve/look``)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

from pellucid.cluster import wire
from pellucid.cluster.watching import Group, PartWatch
from pellucid.engine.job import SchedulingOptions
from pellucid.engine.local_request import LocalRequest
from pellucid.engine.output import TokenOutput
from pellucid.engine.request import RequestOptions
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.sample.chain import Chain
from pellucid.sample.options import Options
from pellucid.serve.body import Body
from pellucid.serve.generate import finished
from pellucid.serve.look.fields import LOOK_BODY
from pellucid.serve.look.looks import LOOKS
from pellucid.serve.look.reading import TraceReading
from pellucid.serve.pool import MOST_WORK
from pellucid.trace.trace import Trace

Tell: TypeAlias = Callable[..., object]
"""Function that sends a message, given its kind and fields. It may be called from any thread."""
LOOKING = ThreadPoolExecutor(MOST_WORK, "pellucid-look")
"""Threads for work that cannot be cancelled, so that it delays no request."""


async def generate(llm: LLM, body: Mapping[str, Any], tell: Tell, watch: PartWatch) -> None:
    """Generate the chains ``numbers`` of a prompt. Each continues after the tokens that it has in ``begun``."""
    if body["watch"]:
        watch.hear("watch", *body["watch"])
    groups = await asyncio.to_thread(_groups, llm, body, watch)
    watch.begin(groups)
    try:
        for one in groups:
            one[2].start(partial(_made, one, tell), partial(tell, "began"))
        for _, _, group in groups:
            await group.finished()
    finally:
        for _, _, group in groups:
            group.close()
        await watch.flush()
    counts = {
        number: list(pair) for numbers, _, group in groups for number, pair in zip(numbers, group.speculation)
    }
    tell("end", counts)


def _groups(llm: LLM, body: Mapping[str, Any], watch: PartWatch) -> list[Group]:
    """Return the requests of a body: one request for all new chains, and one for each continued chain.

    Raises:
        WireError: ``numbers`` is not a list of different numbers below the limit.
    """
    numbers, begun = (
        _numbers(body["numbers"]),
        {int(number): pairs for number, pairs in body["begun"].items()},
    )
    options = Options.of(**body["options"])
    chains, found = dict(zip(numbers, _chains(options, numbers))), list[Group]()
    make = partial(LocalRequest, llm.engine, llm.inputs, body["prompt"])
    edits = [wire.edit_of(one) for one in body["edits"]]
    watching = Trace(llm.points, ()).watching(edits) if edits else None
    scheduling = SchedulingOptions(body["priority"], body["deadline"], body["client"])
    if fresh := [number for number in numbers if not begun.get(number)]:
        found.append(
            (
                fresh,
                0,
                make(RequestOptions(options, scheduling, watching), [chains[number] for number in fresh]),
            )
        )
    for number in numbers:
        if pairs := begun.get(number):
            given = dict(body["options"])
            if given.get("max_new_tokens") is not None:
                given["max_new_tokens"] -= len(pairs)
            before = [(int(token), float(p)) for token, p in pairs]
            first = watch.first_output(number, len(body["prompt"]))
            own = RequestOptions(Options.of(**given), scheduling, watching)
            group = make(own, [chains[number]], before, first_output=first)
            found.append(([number], len(pairs), group))
    return found


def _numbers(given: Any) -> list[int]:
    """Return the numbers of chains, which must differ."""
    listed = given if isinstance(given, list) else []
    found = [one for one in listed if type(one) is int and 0 <= one < wire.MOST_SEQUENCES]
    if not found or len(found) != len(listed) or len(set(found)) != len(found):
        raise wire.WireError(f"numbers={brief(given)}: must be different numbers below {wire.MOST_SEQUENCES}")
    return found


def _chains(options: Options, numbers: Sequence[int]) -> list[Chain]:
    chains = options.chain().with_seeds(max(numbers, default=0) + 1)
    return [chains[number] for number in numbers]


def _made(of: Group, tell: Tell, token: TokenOutput) -> None:
    """Send a generated token. Called in the engine's thread."""
    (numbers, begun, group), at = of, token.sequence
    index = begun + len(group.outputs[at].ids) - 1
    if index == begun and at == 0:
        tell("facts", *wire.facts_fields(group.prompt_output))
    tell("token", numbers[at], index, *wire.token_fields(token))


async def embed(llm: LLM, body: Mapping[str, Any], tell: Tell, _: PartWatch) -> None:
    """Compute sentence vectors."""
    tell("done", wire.array_fields(await asyncio.to_thread(_own(llm, body).embed_tokens, body["encoded"])))


async def beams(llm: LLM, body: Mapping[str, Any], tell: Tell, _: PartWatch) -> None:
    """Run a beam search."""
    search = partial(_own(llm, body).beam_search, body["prompt"], **body["options"])
    tell("done", wire.beams_fields(await asyncio.to_thread(search)))


async def trace(llm: LLM, body: Mapping[str, Any], tell: Tell, _: PartWatch) -> None:
    """Record values of a prompt and of its continuation. Cancelling it cancels its requests."""
    reading = await asyncio.to_thread(TraceReading.of, _fields(body), _own(llm, body))
    await finished(reading.groups)
    _tell_json(tell, await asyncio.to_thread(lambda: json.dumps(reading.answer(body["name"], ""))))


async def look(what: str, llm: LLM, body: Mapping[str, Any], tell: Tell, _: PartWatch) -> None:
    """Answer a question about the model (``LOOKS``)."""
    fields, read, own = _fields(body), LOOKS[what], _own(llm, body)
    made = asyncio.get_running_loop().run_in_executor(LOOKING, lambda: json.dumps(read(fields, own)))
    _tell_json(tell, await made)


def _own(llm: LLM, body: Mapping[str, Any]) -> LLM:
    """Return the model, whose requests count for the client that asks."""
    return llm.for_client(str(body["client"]))


def _fields(body: Mapping[str, Any]) -> Body:
    return Body(json.loads(body["fields"]), LOOK_BODY)


def _tell_json(tell: Tell, made: str) -> None:
    """Send a JSON answer in pieces. It is ASCII, as the server's own JSON."""
    if len(made) > wire.MOST_WHOLE:
        raise InvalidRequest(
            f"an answer of {len(made) >> 20:,} MiB; the limit is {wire.MOST_WHOLE >> 20} MiB: ask for less"
        )
    for piece, more in wire.pieces(made.encode()):
        tell("piece" if more else "done", piece)


WORKS: Mapping[str, Callable[[LLM, Mapping[str, Any], Tell, PartWatch], Coroutine[Any, Any, None]]] = {
    "generate": generate,
    "embed": embed,
    "beams": beams,
    "look/trace": trace,
    **{f"look/{what}": partial(look, what) for what in LOOKS},
}
"""Functions by the names that ingresses send."""
