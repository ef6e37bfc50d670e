"""What llama.cpp's server has beside the other APIs: filling in, and ranking documents."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.engine.request import RequestGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.serve.api import DATA, Api, ClientCall, Route, StreamForm, answer
from pellucid.serve.body import Body, BodyForm, add_ends
from pellucid.serve.generate import generated
from pellucid.serve.openai.answer import error_body
from pellucid.serve.schema import COUNT, FLAG, OBJECT, TEXT, body, generation_options, listed
from pellucid.tokenize.infill import infill_prompt

INFILL = BodyForm(
    harmless=frozenset({"cache_prompt", "id_slot", "n_keep", "t_max_prompt_ms", "return_tokens", "n_indent"}),
    renamed={
        "n_predict": "max_new_tokens",
        "repeat_penalty": "repetition_penalty",
    },
    defaults={"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
)
RERANK = BodyForm(harmless=frozenset({"return_documents", "return_text", "raw_scores", "truncate"}))
MOST_DOCUMENTS = 2048
MOST_FILES = 256
EVENTS = StreamForm(DATA.media_type, DATA.encode)


FILL = body(
    {"input_prefix": TEXT, "input_suffix": TEXT},
    {
        **generation_options(),
        "model": TEXT,
        "prompt": TEXT,
        "input_extra": {"type": "array", "items": OBJECT, "maxItems": MOST_FILES},
        "n_predict": {"type": "integer", "minimum": -1},
        "stream": FLAG,
    },
)
RANK = body({"query": TEXT, "documents": listed(TEXT)}, {"model": TEXT, "top_n": COUNT})


@dataclass(frozen=True)
class InfillRequest:
    """A gap that is filled."""

    group: RequestGroup

    @classmethod
    def of(cls, fields: Body, llm: LLM) -> InfillRequest:
        """Read a fields.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        before = (fields.text("input_prefix") or "") + (fields.text("prompt") or "")
        after, files = fields.text("input_suffix") or "", list[tuple[str, str]]()
        extra = fields.objects("input_extra")
        if len(extra) > MOST_FILES:
            raise InvalidRequest(f"input_extra has {len(extra):,} files; the limit is {MOST_FILES}")
        for at, one in enumerate(extra):
            name, text = one.get("filename", "file"), one.get("text")
            if not isinstance(name, str) or not isinstance(text, str):
                raise InvalidRequest(
                    f"input_extra[{at}]={brief(one)}: must have a filename and a text, both texts"
                )
            files.append((name, text))
        ids, ends = infill_prompt(llm.tokenizer, before, after, files)
        options = fields.options(llm.recommended)
        if options.get("max_new_tokens") == -1:
            del options["max_new_tokens"]
        add_ends(options, ends)
        return cls(llm.request(ids, **options))

    @property
    def groups(self) -> list[RequestGroup]:
        """The request to the engine, checked."""
        return [self.group]

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """The fields of the answer of the model ``name``."""
        (made,) = self.group.results()
        return {**self._end(name), "content": made.text}

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """The answer in pieces."""
        async with aclosing(self.group.stream()) as outputs:
            async for _, output in outputs:
                if output.text:
                    yield {"index": 0, "content": output.text, "stop": False}
        yield {**self._end(name), "content": ""}

    def _end(self, name: str) -> dict[str, Any]:
        (made,) = self.group.results()
        times, usage = made.timings, made.usage
        generated_seconds = times.total - times.first_token
        kinds = {"length": "limit", "time": "limit"}
        return {
            "index": 0,
            "model": name,
            "stop": True,
            "stop_type": "word"
            if isinstance(made.stop_reason, str)
            else kinds.get(made.finish_reason or "", "eos"),
            "stopping_word": made.stop_reason if isinstance(made.stop_reason, str) else "",
            "tokens_predicted": usage.generated_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "truncated": False,
            "timings": {
                "prompt_n": usage.prompt_tokens - usage.cached_tokens,
                "prompt_ms": 1e3 * times.prefill,
                "predicted_n": usage.generated_tokens,
                "predicted_ms": 1e3 * generated_seconds,
                "predicted_per_second": made.tokens_per_second,
            },
        }


def _named(fields: Body, call: ClientCall) -> str:
    """The name of the model; llama.cpp's server has one, so that its clients may leave it out."""
    return fields.model() if fields.has("model") else call.models.names[0]


async def _infill(call: ClientCall) -> Response:
    fields = Body(await call.json(), INFILL)
    name, streams = _named(fields, call), fields.flag("stream")
    return await generated(call, name, lambda llm: InfillRequest.of(fields, llm), EVENTS if streams else None)


async def _rerank(call: ClientCall) -> Response:
    fields = Body(await call.json(), RERANK)
    name, query = _named(fields, call), fields.required("query")
    documents = fields.take("documents") or fields.take("texts")
    if not isinstance(query, str) or not query:
        raise InvalidRequest(f"query={brief(query)}: must be a text")
    if not isinstance(documents, list) or not documents or not all(isinstance(one, str) for one in documents):
        raise InvalidRequest(f"documents={brief(documents)}: must be a list of at least one text")
    if len(documents) > MOST_DOCUMENTS:
        raise InvalidRequest(f"documents has {len(documents):,} texts; the limit is {MOST_DOCUMENTS:,}")
    top = fields.count("top_n", 1, 1 << 31) or len(documents)
    if left := fields.rest():
        raise InvalidRequest(f"unknown field {brief(min(left))}: a ranking has query, documents and top_n")
    async with call.models.use(name) as llm:
        return answer(await run_in_threadpool(_ranked, llm, name, query, documents, top))


def _ranked(llm: LLM, name: str, query: str, documents: list[str], top: int) -> dict[str, Any]:
    """The documents by the cosine of their vector and the query's."""
    texts = [query, *documents]
    vectors = llm.embed(texts, truncate=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores = vectors[1:] @ vectors[0]
    order = np.argsort(-scores, kind="stable")[:top]
    tokens = sum(map(len, llm.inputs.sentences(texts, True)))
    return {
        "model": name,
        "object": "list",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": [{"index": int(at), "relevance_score": float(scores[at])} for at in order],
    }


RANKING = Route(_rerank, "Rank documents by a query.", RANK)
LLAMACPP = Api(
    "llama.cpp",
    {
        "POST /infill": Route(_infill, "Fill a gap in a text.", FILL, EVENTS.media_type),
        **{f"POST {path}": RANKING for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")},
    },
    error_body,
)
