"""What a replica does for an ingress: texts, sentence vectors, beam searches; each tells what it makes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from pellucid.cluster import wire
from pellucid.engine.request import RequestGroup
from pellucid.engine.run import Admission
from pellucid.engine.text_group import MadeToken
from pellucid.llm import LLM
from pellucid.sample.chain import Chain
from pellucid.sample.options import Options

Tell: TypeAlias = Callable[..., object]
"""Is called with the kind and the fields of a message, from any thread."""
Group: TypeAlias = tuple[list[int], int, RequestGroup]
"""The numbers of a request's chains, how many tokens each has had before, and the request."""


async def generate(llm: LLM, body: Mapping[str, Any], tell: Tell) -> None:
    """Texts after a prompt: of the chains ``numbers``, each after the tokens that it has ``begun``."""
    groups = await asyncio.to_thread(_groups, llm, body)
    try:
        for one in groups:
            one[2].start(partial(_made, one, tell), partial(tell, "began"))
        for _, _, group in groups:
            await group.finished()
    finally:
        for _, _, group in groups:
            group.close()
    counts = {
        number: list(pair) for numbers, _, group in groups for number, pair in zip(numbers, group.speculation)
    }
    tell("end", counts)


def _groups(llm: LLM, body: Mapping[str, Any]) -> list[Group]:
    """The requests of a body: one for all chains that begin, one for each that goes on."""
    begun = {int(number): pairs for number, pairs in body["begun"].items()}
    options, numbers = Options.of(**body["options"]), [int(one) for one in body["numbers"]]
    chains, found = dict(zip(numbers, _chains(options, numbers))), list[Group]()
    make = partial(RequestGroup, llm.engine, llm.inputs, body["prompt"])
    how = Admission(body["priority"], body["deadline"])
    if fresh := [number for number in numbers if not begun.get(number)]:
        found.append((fresh, 0, make(options, [chains[number] for number in fresh], how)))
    for number in numbers:
        if pairs := begun.get(number):
            given = dict(body["options"])
            if given.get("max_new_tokens") is not None:
                given["max_new_tokens"] -= len(pairs)
            before = [(int(token), float(p)) for token, p in pairs]
            found.append(
                ([number], len(pairs), make(Options.of(**given), [chains[number]], how, begun=before))
            )
    return found


def _chains(options: Options, numbers: Sequence[int]) -> list[Chain]:
    chains = options.chain().with_seeds(max(numbers, default=0) + 1)
    return [chains[number] for number in numbers]


def _made(of: Group, tell: Tell, at: int, token: MadeToken) -> None:
    """A token was made: called in the engine's thread."""
    numbers, begun, group = of
    index = begun + len(group.builders[at].ids) - 1
    if index == begun and at == 0:
        tell("facts", *wire.facts_fields(group.facts))
    tell("token", numbers[at], index, *wire.token_fields(token))


async def embed(llm: LLM, body: Mapping[str, Any], tell: Tell) -> None:
    """Sentence vectors."""
    tell("done", wire.array_fields(await asyncio.to_thread(llm.embed_tokens, body["encoded"])))


async def beams(llm: LLM, body: Mapping[str, Any], tell: Tell) -> None:
    """A beam search."""
    search = partial(llm.beam_search, body["prompt"], **body["options"])
    tell("done", wire.beams_fields(await asyncio.to_thread(search)))


WORKS: Mapping[str, Callable[[LLM, Mapping[str, Any], Tell], Coroutine[Any, Any, None]]] = {
    "generate": generate,
    "embed": embed,
    "beams": beams,
}
"""By the names that ingresses ask for."""
