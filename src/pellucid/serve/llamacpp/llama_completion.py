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
from pellucid.sample.logprobs import TokenLogprobs
from pellucid.serve.api import Events
from pellucid.serve.generation_options import add_stop_tokens
from pellucid.serve.llamacpp.generation_fields import (
    LLAMACPP_RULES,
    LlamaFields,
    options_of_body,
    settings_of,
)
from pellucid.serve.llamacpp.prompts import LlamaPrompts, prompts_of
from pellucid.serve.llamacpp.telemetry import single, timings, with_progress
from pellucid.serve.openai.probe_scores import scores_field, scores_of_token
from pellucid.serve.openai.response_parts import finite, token_text
from pellucid.serve.receipt_field import receipt_field
from pellucid.serve.request_body import BodyType, Choices, RequestBody
from pellucid.serve.served_model import ServedModel
from pellucid.tokenize import Tokenizer

KINDS = {"length": "limit", "time": "limit"}
MAX_FIELDS = 256


class LlamaCompletionFields(LlamaFields, frozen=True, kw_only=True):
    """Fields of /completion."""

    prompt: LlamaPrompts
    n: Choices = 1
    n_cmpl: Choices | None = None


COMPLETION = BodyType(LlamaCompletionFields, LLAMACPP_RULES)


@dataclass(frozen=True)
class LlamaCompletion:
    """Requests for ``count`` texts of each prompt. If ``is_list`` is True, the response is a list.

    ``fields`` are the fields of the client's request.
    """

    groups: Sequence[Request]
    count: int
    is_list: bool
    fields: LlamaFields
    tokenizer: Tokenizer

    @classmethod
    def of(cls, body: RequestBody[LlamaCompletionFields], llm: ServedModel) -> LlamaCompletion:
        """Read a body. Raises InvalidRequest if a field is wrong."""
        prompts, several = prompts_of(llm, "prompt", body.raw["prompt"])
        count = body.fields.n_cmpl or body.fields.n
        return cls.start(prompts, count, several or count > 1, body, llm)

    @classmethod
    def start(
        cls,
        prompts: Sequence[list[int]],
        count: int,
        is_list: bool,
        body: RequestBody[Any],
        llm: ServedModel,
        stop_tokens: Sequence[int] = (),
    ) -> LlamaCompletion:
        """Build a request from prompts and the options of a body, whose fields are ``LlamaFields``.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        fields, options = body.fields, options_of_body(body, llm)
        add_stop_tokens(options, stop_tokens)
        if fields.post_sampling_probs:
            options["logprobs_of"] = "chain"
        groups = [llm.request(prompt, count, **options) for prompt in prompts]
        if fields.return_progress:
            single(groups, "return_progress")
        return cls(groups, count, is_list, fields, llm.tokenizer)

    def answer(self, name: str, number: str) -> dict[str, Any] | list[Any]:
        """Response body of the model ``name``."""
        responses = [
            self._whole(name, place, at) for place in range(len(self.groups)) for at in range(self.count)
        ]
        return responses if self.is_list else responses[0]

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Stream events, prompt by prompt: an event for each token, then a final event without text."""
        for place, group in enumerate(self.groups):
            events: Events = self._pieces(name, place)
            if self.fields.return_progress:
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
                event |= scores_of_token(output, self.tokenizer)
                if self.fields.timings_per_token:
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
        response = self._end(
            name, place, at, "".join(one.texts), one.ids if self.fields.return_tokens else []
        )
        if group.options.logprobs is not None:
            response["completion_probabilities"] = self._probabilities(one.logprobs)
        response |= scores_field(one, self.tokenizer)
        selected = self.fields.response_fields[:MAX_FIELDS]
        return _selected(response, selected) if selected else response

    def _end(self, name: str, place: int, at: int, content: str, ids: Sequence[int]) -> dict[str, Any]:
        group = self.groups[place]
        generation, options = group.results()[at], group.options
        found = generation.stop_reason if generation.finish_reason == "stop" else None
        word = found if isinstance(found, str) else ""
        return {
            "index": place * self.count + at,
            "content": content,
            "tokens": list(ids),
            "id_slot": -1,
            "stop": True,
            "model": name,
            "tokens_predicted": generation.usage.generated_tokens,
            "tokens_evaluated": generation.usage.prompt_tokens,
            "generation_settings": settings_of(options, generation.seed),
            "prompt": self.tokenizer.decode(group.prompt, skip_special=False),
            "has_new_line": "\n" in generation.text,
            "truncated": _truncated(generation, options.max_new_tokens),
            "stop_type": "word" if word else KINDS.get(generation.finish_reason or "", "eos"),
            "stopping_word": word,
            "tokens_cached": generation.usage.cached_tokens,
            "timings": timings(group, at),
            **receipt_field(generation),
        }

    def _probabilities(self, rows: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        top = "top_probs" if self.fields.post_sampling_probs else "top_logprobs"
        return [
            {
                **self._probability(row.id, row.chosen),
                top: [
                    self._probability(token, value)
                    for token, value in zip(row.top_ids.tolist(), row.top.tolist())
                    if token >= 0 and (value > -math.inf or not self.fields.post_sampling_probs)
                ],
            }
            for row in rows
        ]

    def _probability(self, token: int, value: float) -> dict[str, Any]:
        shown = {"prob": math.exp(value)} if self.fields.post_sampling_probs else {"logprob": finite(value)}
        data = self.tokenizer.token_bytes(token)
        return {"id": token, "token": token_text(token, self.tokenizer), "bytes": list(data), **shown}


def _truncated(generation: Generation, most: int | None) -> bool:
    """True if the text ended because the context was full."""
    return generation.finish_reason == "length" and (most is None or len(generation.ids) < most)


def _selected(response: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The requested fields. "a/b" is the field "b" of the object "a". Absent fields are left out."""
    selected = dict[str, Any]()
    for field in fields:
        *outer, last = field.split("/")
        inside: Any = response
        for part in outer:
            inside = inside.get(part) if isinstance(inside, Mapping) else None
        if isinstance(inside, Mapping) and last in inside:
            selected[field] = inside[last]
    return selected
