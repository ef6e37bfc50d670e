"""Timings and prompt progress in responses, as in llama.cpp's server.

A request asks for timings with the field ``timings_per_token`` and for progress with ``return_progress``, also in
OpenAI's APIs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.serve.api import Events
from pellucid.serve.generation_response import Streaming
from pellucid.serve.llamacpp.generation_fields import BUILD
from pellucid.tokenize import Tokenizer

EVERY = 0.05  # seconds between two checks of the prompt's progress


@dataclass(frozen=True)
class Telemetry:
    """Options of a request: ``timings`` in each event of a stream, ``progress`` of the prompt, ``verbose`` responses.

    A verbose response shows its prompt. ``own`` is True if the path is in llama.cpp's API only. Responses of such a
    path always have timings and the build name.
    """

    timings: bool
    progress: bool
    own: bool = True
    verbose: bool = False

    def wrap(
        self, request: Streaming, blank: Callable[[str, str], dict[str, Any]], tokenizer: Tokenizer
    ) -> Streaming:
        """Wrap a request so that its response has the requested telemetry. ``blank`` builds an event without text.

        Raises:
            InvalidRequest: ``return_progress`` or ``verbose`` with several prompts.
        """
        for name in ("progress", "verbose"):
            if getattr(self, name):
                single(request.groups, {"progress": "return_progress"}.get(name, name))
        nothing = not (self.timings or self.progress or self.own or self.verbose)
        return request if nothing else TelemetryRequest(self, request, blank, tokenizer)


@dataclass(frozen=True)
class TelemetryRequest:
    """A request whose response has telemetry."""

    telemetry: Telemetry
    request: Streaming
    blank: Callable[[str, str], dict[str, Any]]
    tokenizer: Tokenizer

    @property
    def groups(self) -> Sequence[Request]:
        """Engine groups of the request."""
        return self.request.groups

    def answer(self, name: str, number: str) -> dict[str, Any] | list[Any]:
        """Response body with telemetry."""
        response = self.request.answer(name, number)
        assert isinstance(response, dict)
        telemetry = self.telemetry
        if telemetry.own:
            response["system_fingerprint"] = BUILD
        if telemetry.verbose:
            response["__verbose"] = self._verbose()
        return (
            {**response, "timings": timings(self.groups[-1])}
            if telemetry.own or telemetry.timings
            else response
        )

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Stream events with telemetry."""
        telemetry, events, shown = self.telemetry, self.request.stream(name, number), False
        if telemetry.progress:
            events = with_progress(events, self.groups[0], lambda: self.blank(name, number))
        async with aclosing(events):
            async for event in events:
                begun = any(one.ids for one in self.groups[-1].outputs)
                ended = all(one.ended for group in self.groups for one in group.outputs)
                if (telemetry.timings and begun) or ((telemetry.own or telemetry.timings) and ended):
                    event["timings"] = timings(self.groups[-1])
                if telemetry.own:
                    event["system_fingerprint"] = BUILD
                    _begin_as_there(event)
                if telemetry.verbose and not shown:
                    event["__verbose"], shown = self._verbose(), True
                yield event

    def _verbose(self) -> dict[str, Any]:
        return {"prompt": self.tokenizer.decode(self.groups[0].prompt, skip_special=False)}


def _begin_as_there(event: dict[str, Any]) -> None:
    """Replace the first delta's empty ``content`` by null, as in llama.cpp's streams. OpenAI's streams have ""."""
    for choice in event["choices"]:
        delta = choice.get("delta", {})
        if "role" in delta and not delta.get("content"):
            delta["content"] = None


def single(groups: Sequence[Request], field: str) -> None:
    """Raise InvalidRequest if a request with the field ``field`` has several prompts."""
    if len(groups) > 1:
        raise InvalidRequest(
            f"{field} needs a single prompt; the request has {len(groups):,}: leave {field} out"
        )


async def with_progress(
    events: Events, group: Request, blank: Callable[[], dict[str, Any]]
) -> AsyncGenerator[dict[str, Any], None]:
    """Events of a stream, preceded by events with the progress of the prompt."""
    coming, reported, start = None, -1, 0.0
    try:
        while True:
            begun = reported == len(group.prompt)
            coming = coming or asyncio.ensure_future(anext(events, None))
            await asyncio.wait({coming}, timeout=None if begun else EVERY)
            read = group.prompt_read
            if not begun and read is not None:
                if reported < 0:
                    reported, start = group.prompt_output.cached, time.perf_counter()
                    yield _progress(blank(), group, reported, 0.0)
                if read > reported:
                    reported = read
                    yield _progress(blank(), group, reported, time.perf_counter() - start)
            if coming.done():
                event, coming = coming.result(), None
                if event is None:
                    return
                yield event
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()


def _progress(event: dict[str, Any], group: Request, read: int, seconds: float) -> dict[str, Any]:
    cached = group.prompt_output.cached
    progress = {"total": len(group.prompt), "cache": cached, "processed": read, "time_ms": 1e3 * seconds}
    times = _timings(cached, read - cached, seconds, 0, 0.0)
    return {**event, "prompt_progress": progress, "timings": times}


def timings(group: Request, at: int = 0) -> Mapping[str, Any]:
    """Token counts and times of a sequence so far. As in llama.cpp, the prompt's time includes the first token."""
    one, cached = group.outputs[at], group.prompt_output.cached
    times = _timings(
        cached, len(group.prompt) - cached, one.prefill_seconds, len(one.ids), one.total - one.first
    )
    proposed, accepted = (group.speculation or [(0, 0)] * (at + 1))[at]
    return {**times, **({"draft_n": proposed, "draft_n_accepted": accepted} if proposed else {})}


def _timings(cached: int, read: int, seconds: float, generated: int, after: float) -> dict[str, Any]:
    """Timings in llama.cpp's form. ``after`` is the time of decode: seconds after the first of ``generated`` tokens."""
    steps = max(generated - 1, 0)
    return {
        "cache_n": cached,
        "prompt_n": read,
        "prompt_ms": 1e3 * seconds,
        "prompt_per_token_ms": 1e3 * seconds / read if read else 0.0,
        "prompt_per_second": read / seconds if seconds else 0.0,
        "predicted_n": generated,
        "predicted_ms": 1e3 * after,
        "predicted_per_token_ms": 1e3 * after / steps if steps else 0.0,
        "predicted_per_second": steps / after if after else 0.0,
    }
