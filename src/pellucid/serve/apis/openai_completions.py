"""/v1/completions continues prompts and scores texts; /v1/embeddings makes vectors of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from pellucid.base_llm import BaseLLM
from pellucid.encoders.tasks import embed, vector_width
from pellucid.engine.inputs import several
from pellucid.engine.output import Generation
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, brief
from pellucid.sample.logprobs import Logprobs, joined
from pellucid.serve import encoder_inputs as encoders
from pellucid.serve import openai_parts as openai
from pellucid.serve import request_body as bodies
from pellucid.serve.api import Events
from pellucid.serve.generation_options import add_stop_tokens
from pellucid.serve.routes import Tokens, Unparsed
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.infill import infill_prompt

MOST_PROMPTS = 1024
USUAL_TOKENS = 16  # OpenAI's default of max_tokens


class CompletionFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of a completion request. The last three fields come from llama.cpp (``llamacpp_fields.py``)."""

    prompt: bodies.Prompt
    n: bodies.Choices = 1
    stream: bool = False
    stream_options: openai.StreamOptions = openai.StreamOptions()
    best_of: bodies.Choices | None = None
    echo: bool = False
    logprobs: bodies.TopLogprobs | None = None
    suffix: str | None = None
    timings_per_token: bool = False
    return_progress: bool = False
    verbose: bool = False


COMPLETION = bodies.BodyType(CompletionFields, openai.OPENAI_RULES)


@dataclass(frozen=True)
class CompletionRequest(Unparsed):
    """A completion request. Each prompt has a group of ``best_of`` texts; the best ``choices`` texts are returned.

    With ``echo``, each text begins with its prompt. ``logprobs`` is the number of reported alternatives of each token
    (None: no log-probabilities). With ``scores``, only the prompt is scored. With ``with_usage``, a stream ends with
    token counts.
    """

    groups: Sequence[Request]
    choices: int
    best_of: int | None
    echo: bool
    logprobs: int | None
    scores: bool
    tokenizer: Tokenizer
    with_usage: bool

    @classmethod
    def of(cls, body: bodies.RequestBody[CompletionFields], llm: BaseLLM[Any]) -> CompletionRequest:
        fields = body.fields
        prompt: Any = fields.prompt
        choices, best_of, echo, logprobs = fields.n, fields.best_of, fields.echo, fields.logprobs
        if not prompt:
            raise InvalidRequest(f"prompt={brief(prompt)}: must be a text, token ids, or a list of these")
        prompts = [*(several(prompt) or [prompt])]
        if len(prompts) > MOST_PROMPTS:
            raise InvalidRequest(f"prompt has {len(prompts):,} prompts; the limit is {MOST_PROMPTS:,}")
        if best_of is not None and best_of < choices:
            raise InvalidRequest(f"best_of={best_of}: must be at least n, which is {choices}")
        limit = body.given.get("max_tokens")
        scores = echo and type(limit) is int and limit == 0
        if scores:
            del body.given["max_tokens"]
        options = {"max_new_tokens": USUAL_TOKENS, **body.options(llm.recommended)}
        if scores:
            options["max_new_tokens"] = 1  # the generated token is not returned
        if logprobs is not None:
            options |= {"logprobs": logprobs} | ({"prompt_logprobs": logprobs} if echo else {})
        if best_of is not None:
            options.setdefault("logprobs", 0)
        if fields.suffix is not None:
            for at, one in enumerate(prompts):
                if not isinstance(one, str):
                    raise InvalidRequest(f"prompt={brief(one)}: must be a text if suffix is given")
                prompts[at], ends = infill_prompt(llm.tokenizer, one, fields.suffix)
            add_stop_tokens(options, ends)
        groups = [llm.request(prompt, best_of or choices, **options) for prompt in prompts]
        if fields.stream and best_of is not None:
            raise InvalidRequest("best_of does not go with stream=true: the texts are compared after they end")
        return cls(groups, choices, best_of, echo, logprobs, scores, llm.tokenizer, fields.stream_options.include_usage)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        choices, used = list[dict[str, Any]](), list[dict[str, Any]]()
        for group in self.groups:
            generations = self._results(group)
            used.append(openai.usage(generations))
            ranked = list(zip(generations, group.outputs))
            if self.best_of is not None:
                ranked.sort(key=lambda pair: -pair[0].mean_logprob)
            for one, output in ranked[: self.choices]:
                writer = self._writer(group)
                text, logprobs = writer.written(one.text, None if self.logprobs is None else one.logprobs)
                reason = openai.REASONS[one.finish_reason]
                scores = {} if self.scores else openai.scores_field(output, self.tokenizer)
                choice = _choice(len(choices), text, logprobs, reason)
                choices.append({**choice, **scores, **openai.receipt_field(one)})
        return {**self.blank(name, number), "choices": choices, "usage": openai.total_usage(used)}

    async def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        """Chunks of the texts, prompt by prompt."""
        begin = self.blank(name, number)
        writers = [self._writer(group) for group in self.groups for _ in range(self.choices)]
        async for choice, group, output, _, count in tokens:
            at, reason, logprobs = output.sequence, output.finish_reason, None
            if self.logprobs is not None:
                # ``group.outputs`` may already hold later tokens.
                token = group.outputs[at].logprobs[count - 1]
                logprobs = joined([] if self.scores else [token], self.logprobs)
            text, shown = writers[choice].written("" if self.scores else output.text, logprobs)
            scores = {} if self.scores else openai.scores_of_token(output, self.tokenizer)
            if text or reason or shown or scores:
                ended = "length" if self.scores else openai.REASONS[reason] if reason else None
                receipt = openai.receipt_field(self._results(group)[at]) if reason else {}
                yield {**begin, "choices": [{**_choice(choice, text, shown, ended), **scores, **receipt}]}
        if self.with_usage:
            used = openai.total_usage([openai.usage(self._results(group)) for group in self.groups])
            yield {**begin, "choices": [], "usage": used}

    def blank(self, name: str, number: str) -> dict[str, Any]:
        head = openai.response_head(f"cmpl-{number}", "text_completion", name)
        return {**head, "choices": [_choice(0, "", None, None)]}

    def _results(self, group: Request) -> list[Generation]:
        """Generations of a prompt; without text if only the prompt is scored."""
        generations = group.results()
        if not self.scores:
            return generations
        none = None if self.logprobs is None else joined([], self.logprobs)
        return [
            replace(
                one,
                text="",
                ids=[],
                finish_reason="length",
                logprobs=none,
                receipt=None,
                usage=replace(one.usage, generated_tokens=0),
            )
            for one in generations
        ]

    def _writer(self, group: Request) -> ChoiceWriter:
        return ChoiceWriter(group, self.echo, self.tokenizer)


class ChoiceWriter:
    """Writes one text of a prompt, complete or in chunks. With ``echo`` the first chunk begins with the prompt."""

    def __init__(self, group: Request, echo: bool, tokenizer: Tokenizer) -> None:
        self._group, self._echo, self._tokenizer, self._offset = group, echo, tokenizer, 0

    def written(self, text: str, logprobs: Logprobs | None) -> tuple[str, dict[str, Any] | None]:
        """The next chunk of the text, with its log-probabilities in OpenAI's older form: parallel lists.

        The log-probability of the prompt's first token is null, because no token comes before it.
        """
        echoed, self._echo = self._echo, False
        ids = self._group.prompt
        if echoed:
            text = self._tokenizer.decode(ids) + text
        if logprobs is None:
            return text, None
        parts = [logprobs]
        tokens, values, tops = list[str](), list[float | None](), list[dict[str, float] | None]()
        if echoed and (before := self._group.prompt_output.logprobs) is not None:
            tokens, values, tops = [openai.token_text(ids[0], self._tokenizer)], [None], [None]
            parts.insert(0, before)
        for part in parts:
            tokens += [openai.token_text(int(token), self._tokenizer) for token in part.ids]
            values += [openai.finite(float(value)) for value in part.chosen]
            tops += [
                {
                    openai.token_text(int(token), self._tokenizer): openai.finite(float(value))
                    for token, value in zip(ids, row)
                    if token >= 0
                }
                for ids, row in zip(part.top_ids, part.top)
            ]
        starts = np.cumsum([self._offset, *(len(token) for token in tokens)])
        self._offset = int(starts[-1])
        return text, {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": starts[:-1].tolist(),
        }


def _choice(number: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}


# /v1/embeddings: sentence vectors of texts or token ids.


class TextObject(bodies.Fields, frozen=True):
    """A text in Jina's form."""

    text: str


TextInputs = Annotated[
    str | list[str | bodies.TokenId | list[bodies.TokenId] | TextObject],
    Meta(title="a text, token ids, or a list of these"),
]


class EmbeddingFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of an embedding request.

    The prompt before each text is named by ``prompt_name``, or by its purpose: ``input_type`` (vLLM, Cohere, Voyage) or
    ``task`` (Jina). ``encoding_format`` (OpenAI) and ``embedding_type`` (Jina) are names of one field.
    """

    input: TextInputs
    encoding_format: Literal["float", "base64"] | None = None
    embedding_type: encoders.VectorFormat | None = None
    dimensions: bodies.Count | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    task: str | None = None
    truncate: bool = False
    truncate_prompt_tokens: bodies.TokenLimit | None = None
    normalized: bool | None = None


EMBEDDING = bodies.BodyType(
    EmbeddingFields,
    bodies.BodyRules(ignored=frozenset({"user"}), only={"late_chunking": False, "return_multivector": False}),
)


def embeddings(body: bodies.RequestBody[EmbeddingFields], llm: BaseLLM[Any], name: str, number: str) -> dict[str, Any]:
    encoders.check_task(llm, "embed")
    fields, limit = body.fields, body.fields.truncate_prompt_tokens
    texts, cut = encoders.listed_inputs("input", fields.input), fields.truncate or None
    encoded = encoders.encoded_texts(llm, texts, cut, _prompt(llm, fields), limit)
    width = vector_width(llm, fields.dimensions)
    if fields.encoding_format and fields.embedding_type:
        raise InvalidRequest("encoding_format and embedding_type are names of one field: remove one of the two")
    form = fields.embedding_type or fields.encoding_format or "float"
    vectors = encoders.of_unit_length(llm, embed(llm, encoded, width), "normalized", fields.normalized)
    tokens = sum(map(len, encoded))
    return {
        "object": "list",
        "model": name,
        "data": [
            {"object": "embedding", "index": at, "embedding": vector}
            for at, vector in enumerate(encoders.formatted(vectors, form))
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _prompt(llm: BaseLLM[Any], fields: EmbeddingFields) -> str:
    """The name of the prompt that a request asks for; "": the default prompt."""
    given = [one for one in ("prompt_name", "input_type", "task") if getattr(fields, one)]
    if len(given) > 1:
        raise InvalidRequest(f"{given[0]} and {given[1]} both choose the prompt: remove one of the two")
    return encoders.prompt_of_name(llm, fields.prompt_name) or encoders.prompt_of_purpose(
        llm, fields.input_type or fields.task
    )
