"""/completion: continues prompts, in llama.cpp's own form.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.output import Generation
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.logprobs import TokenLogprobs
from pellucid.serve.api import Events
from pellucid.serve.body import MOST_CHOICES, Body, add_ends
from pellucid.serve.llamacpp.fields import options_of_body, settings_of
from pellucid.serve.llamacpp.prompts import prompts_of
from pellucid.serve.llamacpp.telemetry import Telemetry, single, timings, with_progress
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import finite, token_text
from pellucid.tokenize import Tokenizer

KINDS = {"length": "limit", "time": "limit"}
MOST_FIELDS = 256


@dataclass(frozen=True)
class Shown:
    """Content of responses: probabilities ``after`` or before the chain, token ``ids``, and selected ``fields``."""

    after: bool
    ids: bool
    fields: Sequence[str]
    telemetry: Telemetry

    @classmethod
    def of(cls, body: Body) -> Shown:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        fields = body.take("response_fields", [])
        if not isinstance(fields, list) or not all(isinstance(one, str) for one in fields[:MOST_FIELDS]):
            raise InvalidRequest(f"response_fields={brief(fields)}: must be a list of names")
        after, ids = body.flag("post_sampling_probs"), body.flag("return_tokens")
        timings, progress = body.flag("timings_per_token"), body.flag("return_progress")
        return cls(after, ids, fields[:MOST_FIELDS], Telemetry(timings, progress))


@dataclass(frozen=True)
class LlamaCompletion:
    """Prompts that run, each ``count`` times. ``listed``: the response is a list."""

    groups: Sequence[Request]
    count: int
    listed: bool
    shown: Shown
    tokenizer: Tokenizer

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> LlamaCompletion:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        prompts, several = prompts_of(llm, "prompt", body.required("prompt"))
        other = body.count("n", 1, MOST_CHOICES)
        count = body.count("n_cmpl", 1, MOST_CHOICES) or other or 1
        return cls.made(prompts, count, several or count > 1, body, llm)

    @classmethod
    def made(
        cls,
        prompts: Sequence[list[int]],
        count: int,
        listed: bool,
        body: Body,
        llm: ServedModel,
        ends: Sequence[int] = (),
    ) -> LlamaCompletion:
        """Build a request from prompts and the options of a body. ``ends`` are extra stop tokens.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        shown, options = Shown.of(body), options_of_body(body, llm)
        add_ends(options, ends)
        if shown.after:
            options["logprobs_of"] = "chain"
        groups = [llm.request(prompt, count, **options) for prompt in prompts]
        if shown.telemetry.progress:
            single(groups, "return_progress")
        return cls(groups, count, listed, shown, llm.tokenizer)

    def answer(self, name: str, number: str) -> dict[str, Any] | list[Any]:
        """Response body of the model ``name``."""
        made = [self._whole(name, place, at) for place in range(len(self.groups)) for at in range(self.count)]
        return made if self.listed else made[0]

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Stream events, prompt by prompt: an event for each token, then a final event without text."""
        for place, group in enumerate(self.groups):
            events: Events = self._pieces(name, place)
            if self.shown.telemetry.progress:
                events = with_progress(events, group, self._blank)
            async with aclosing(events):
                async for event in events:
                    yield event

    async def _pieces(self, name: str, place: int) -> AsyncGenerator[dict[str, Any], None]:
        group, heard = self.groups[place], [0] * self.count
        alternatives = group.options.logprobs
        async with aclosing(group.stream()) as outputs:
            async for output in outputs:
                at = output.sequence
                one, token = group.outputs[at], heard[at]
                heard[at] += 1
                event = {
                    "index": place * self.count + at,
                    "content": output.text,
                    "tokens": [one.ids[token]],
                    "stop": False,
                    "id_slot": -1,
                    "tokens_predicted": heard[at],
                    "tokens_evaluated": len(group.prompt),
                }
                if alternatives is not None:
                    event["completion_probabilities"] = self._probabilities(one.logprobs[token : token + 1])
                if self.shown.telemetry.timings:
                    event["timings"] = timings(group, at)
                yield event
                if output.finish_reason:
                    yield self._end(name, place, at, "", [])

    def _blank(self) -> dict[str, Any]:
        return {"index": 0, "content": "", "tokens": [], "stop": False, "id_slot": -1}

    def _whole(self, name: str, place: int, at: int) -> dict[str, Any]:
        """Response of a finished sequence."""
        group = self.groups[place]
        one = group.outputs[at]
        made = self._end(name, place, at, "".join(one.texts), one.ids if self.shown.ids else [])
        if group.options.logprobs is not None:
            made["completion_probabilities"] = self._probabilities(one.logprobs)
        return _chosen(made, self.shown.fields) if self.shown.fields else made

    def _end(self, name: str, place: int, at: int, content: str, ids: Sequence[int]) -> dict[str, Any]:
        group = self.groups[place]
        made, options = group.results()[at], group.options
        word = made.stop_reason if isinstance(made.stop_reason, str) else ""
        return {
            "index": place * self.count + at,
            "content": content,
            "tokens": list(ids),
            "id_slot": -1,
            "stop": True,
            "model": name,
            "tokens_predicted": made.usage.generated_tokens,
            "tokens_evaluated": made.usage.prompt_tokens,
            "generation_settings": settings_of(options, made.seed),
            "prompt": self.tokenizer.decode(group.prompt, skip_special=False),
            "has_new_line": "\n" in made.text,
            "truncated": _truncated(made, options.max_new_tokens),
            "stop_type": "word" if word else KINDS.get(made.finish_reason or "", "eos"),
            "stopping_word": word,
            "tokens_cached": made.usage.cached_tokens,
            "timings": timings(group, at),
        }

    def _probabilities(self, rows: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        top = "top_probs" if self.shown.after else "top_logprobs"
        return [
            {
                **self._probability(row.id, row.chosen),
                top: [
                    self._probability(token, value)
                    for token, value in zip(row.top_ids.tolist(), row.top.tolist())
                    if token >= 0 and (value > -math.inf or not self.shown.after)
                ],
            }
            for row in rows
        ]

    def _probability(self, token: int, value: float) -> dict[str, Any]:
        shown = {"prob": math.exp(value)} if self.shown.after else {"logprob": finite(value)}
        data = self.tokenizer.token_bytes(token)
        return {"id": token, "token": token_text(token, self.tokenizer), "bytes": list(data), **shown}


def _truncated(made: Generation, most: int | None) -> bool:
    """True if the text ended because the context was full."""
    return made.finish_reason == "length" and (most is None or len(made.ids) < most)


def _chosen(made: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The requested fields. "a/b" is the field "b" of the object "a". Absent fields are left out."""
    found = dict[str, Any]()
    for field in fields:
        *outer, last = field.split("/")
        inside: Any = made
        for part in outer:
            inside = inside.get(part) if isinstance(inside, Mapping) else None
        if isinstance(inside, Mapping) and last in inside:
            found[field] = inside[last]
    return found
