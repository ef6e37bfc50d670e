"""llama.cpp's /completion and /infill: continues prompts, and fills gaps.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from pellucid.base_llm import BaseLLM
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, brief
from pellucid.sample.logprobs import TokenLogprobs
from pellucid.serve.api import Events
from pellucid.serve.apis import llamacpp_fields as llama
from pellucid.serve.chat.messages import joined_texts
from pellucid.serve.generation_options import add_stop_tokens
from pellucid.serve.openai_parts import finite, receipt_field, scores_field, scores_of_token, token_text
from pellucid.serve.request_body import BodyType, Choices, Fields, RequestBody, TokenId
from pellucid.serve.routes import Tokens, Unparsed
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.infill import infill_prompt
from pellucid.util.checks import token_id

# Prompts in the forms of llama.cpp's server: a string, token ids, both mixed, or an object with a string.
#
# Control tokens in text are parsed, because clients of llama.cpp render chat templates themselves or with
# /apply-template, and send the result. BOS is added before a string, and before a list that begins with a string.

MOST_PROMPTS = 1024
MOST_PARTS = 1 << 20
KEYS = ("prompt_string", "content", "multimodal_data")
FORMS = "a text, token ids, both in one list, or an object with prompt_string"


class PromptObject(Fields, frozen=True):
    """A prompt with its text in ``prompt_string``, or in the text parts of ``content``."""

    prompt_string: str | None = None
    content: list[Any] | None = None
    multimodal_data: Sequence[Any] = ()


LlamaPrompts: TypeAlias = Annotated[
    str | TokenId | PromptObject | list[str | TokenId | PromptObject | list[str | TokenId]],
    Meta(title=f"{FORMS}, or a list of these"),
]


def prompts_of(llm: BaseLLM[Any], name: str, value: Any) -> tuple[list[list[int]], bool]:
    """Token ids of each prompt of the field ``name``, and True if the field is a list of prompts."""
    # A list that contains a number is a single prompt.
    if not isinstance(value, list) or any(type(one) is int for one in value):
        return [_ids(llm, name, value)], False
    if not value:
        raise InvalidRequest(f"{name}=[]: must be {FORMS}, or a list of these")
    if len(value) > MOST_PROMPTS:
        raise InvalidRequest(f"{name} has {len(value):,} prompts; the limit is {MOST_PROMPTS:,}: send fewer")
    return [_ids(llm, f"{name}[{at}]", one) for at, one in enumerate(value)], True


def _ids(llm: BaseLLM[Any], name: str, value: Any) -> list[int]:
    if isinstance(value, Mapping):
        value = _text_of(name, value)
    parts = value if isinstance(value, list) else [value]
    if not parts or len(parts) > MOST_PARTS:
        raise InvalidRequest(f"{name}={brief(value)}: must be {FORMS}")
    ids, size, encode = list[int](), llm.inputs.vocabulary, llm.tokenizer.encode
    for at, part in enumerate(parts):
        if isinstance(part, str):
            ids += encode(part, add_special=at == 0, parse_special=True)
        elif type(part) is int:
            ids.append(token_id(name, part, size))
        else:
            raise InvalidRequest(f"{name}={brief(part)}: must be {FORMS}")
    return ids


def _text_of(name: str, value: Mapping[str, Any]) -> str:
    """Text of an object: ``prompt_string``, or the text parts of ``content``."""
    if value.get("multimodal_data"):
        raise InvalidRequest(f"{name}.multimodal_data: only text is supported, no images and no audio")
    if unknown := value.keys() - KEYS:
        raise InvalidRequest(f"{name} has {brief(min(unknown, key=str))}: it may have {' or '.join(KEYS[:2])}")
    if isinstance(text := value.get("prompt_string"), str):
        return text
    if isinstance(parts := value.get("content"), list):
        return joined_texts(parts, f"{name}.content", ("text",))
    raise InvalidRequest(f"{name}={brief(value)}: must be {FORMS}")


KINDS = {"length": "limit", "time": "limit"}
MAX_FIELDS = 256


class LlamaCompletionFields(llama.LlamaFields, frozen=True, kw_only=True):
    """Fields of /completion."""

    prompt: LlamaPrompts
    n: Choices = 1
    n_cmpl: Choices | None = None


COMPLETION = BodyType(LlamaCompletionFields, llama.LLAMACPP_RULES)


@dataclass(frozen=True)
class LlamaCompletion(Unparsed):
    """Requests for ``count`` texts of each prompt. If ``is_list`` is True, the response is a list.

    ``fields`` are the fields of the client's request.
    """

    groups: Sequence[Request]
    count: int
    is_list: bool
    fields: llama.LlamaFields
    tokenizer: Tokenizer

    @classmethod
    def of(cls, body: RequestBody[LlamaCompletionFields], llm: BaseLLM[Any]) -> LlamaCompletion:
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
        llm: BaseLLM[Any],
        stop_tokens: Sequence[int] = (),
    ) -> LlamaCompletion:
        """Build a request from prompts and the options of a body, whose fields are ``LlamaFields``."""
        fields, options = body.fields, llama.options_of_body(body, llm)
        add_stop_tokens(options, stop_tokens)
        if fields.post_sampling_probs:
            options["logprobs_of"] = "chain"
        groups = [llm.request(prompt, count, **options) for prompt in prompts]
        if fields.return_progress:
            llama.single(groups, "return_progress")
        return cls(groups, count, is_list, fields, llm.tokenizer)

    def answer(self, name: str, number: str) -> dict[str, Any] | list[Any]:
        places = [(group, place * self.count) for place, group in enumerate(self.groups)]
        responses = [self._whole(name, group, first + at) for group, first in places for at in range(self.count)]
        return responses if self.is_list else responses[0]

    async def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        """Stream events, prompt by prompt: an event for each token, then a final event without text."""
        events: Events = self._pieces(name, tokens)
        if self.fields.return_progress:
            blank = {"index": 0, "content": "", "tokens": [], "stop": False, "id_slot": -1}
            events = llama.with_progress(events, self.groups[0], lambda: blank)
        async with aclosing(events):
            async for event in events:
                yield event

    async def _pieces(self, name: str, tokens: Tokens) -> Events:
        async for choice, group, output, _, count in tokens:
            one = group.outputs[output.sequence]
            event = {
                "index": choice,
                "content": output.text,
                "tokens": [one.ids[count - 1]],
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": count,
                "tokens_evaluated": len(group.prompt),
            }
            if group.options.logprobs is not None:
                event["completion_probabilities"] = self._probabilities(one.logprobs[count - 1 : count])
            event |= scores_of_token(output, self.tokenizer)
            if self.fields.timings_per_token:
                event["timings"] = llama.timings(group, output.sequence)
            yield event
            if output.finish_reason:
                yield self._end(name, group, choice, "", [])

    def _whole(self, name: str, group: Request, choice: int) -> dict[str, Any]:
        """Response of a finished sequence."""
        one, returned, selected = (
            group.outputs[choice % self.count],
            self.fields.return_tokens,
            self.fields.response_fields,
        )
        response = self._end(name, group, choice, "".join(one.texts), one.ids if returned else [])
        if group.options.logprobs is not None:
            response["completion_probabilities"] = self._probabilities(one.logprobs)
        response |= scores_field(one, self.tokenizer)
        return _selected(response, selected[:MAX_FIELDS]) if selected else response

    def _end(self, name: str, group: Request, choice: int, content: str, ids: Sequence[int]) -> dict[str, Any]:
        at = choice % self.count
        generation, options = group.results()[at], group.options
        found = generation.stop_reason if generation.finish_reason == "stop" else None
        word, most = found if isinstance(found, str) else "", options.max_new_tokens
        # The text ended because the context was full.
        is_full = generation.finish_reason == "length" and (most is None or len(generation.ids) < most)
        return {
            "index": choice,
            "content": content,
            "tokens": list(ids),
            "id_slot": -1,
            "stop": True,
            "model": name,
            "tokens_predicted": generation.usage.generated_tokens,
            "tokens_evaluated": generation.usage.prompt_tokens,
            "generation_settings": llama.settings_of(options, generation.seed),
            "prompt": self.tokenizer.decode(group.prompt, skip_special=False),
            "has_new_line": "\n" in generation.text,
            "truncated": is_full,
            "stop_type": "word" if word else KINDS.get(generation.finish_reason or "", "eos"),
            "stopping_word": word,
            "tokens_cached": generation.usage.cached_tokens,
            "timings": llama.timings(group, at),
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


MAX_FILES = 256


class ExtraFile(Struct, frozen=True):
    """Another file of the repository. Clients send further fields, which are ignored."""

    text: str
    filename: str = "file"


class InfillFields(llama.LlamaFields, frozen=True, kw_only=True):
    """Fields of /infill. ``prompt`` continues ``input_prefix``."""

    input_prefix: str = ""
    input_suffix: str = ""
    prompt: str = ""
    input_extra: Sequence[ExtraFile] = ()


INFILL = BodyType(InfillFields, llama.LLAMACPP_RULES)


def infill_request(body: RequestBody[InfillFields], llm: BaseLLM[Any]) -> LlamaCompletion:
    fields = body.fields
    if len(fields.input_extra) > MAX_FILES:
        raise InvalidRequest(f"input_extra has {len(fields.input_extra):,} files; the limit is {MAX_FILES}")
    files = [(one.filename, one.text) for one in fields.input_extra]
    before = fields.input_prefix + fields.prompt
    ids, stop_tokens = infill_prompt(llm.tokenizer, before, fields.input_suffix, files)
    return LlamaCompletion.start([ids], 1, False, body, llm, stop_tokens)
