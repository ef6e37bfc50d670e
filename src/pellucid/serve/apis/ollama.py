"""Ollama's API: chat, generation, embeddings, models."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.base_llm import BaseLLM
from pellucid.encoders.tasks import embed, vector_width
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, brief
from pellucid.serve.api import JSON_LINES, Api, ClientCall, Events, Route, event_stream, json_response
from pellucid.serve.apis import ollama_fields
from pellucid.serve.apis.ollama_fields import (
    CHAT,
    EMBED,
    GENERATE,
    OLD_EMBED,
    PULL,
    SHOW,
    ChatOptions,
    ChunkLogprobs,
    GenerateOptions,
    OllamaFields,
    PromptOptions,
    chunk,
    error_body,
    keep_alive_of,
    last_chunk,
    options_of,
    refuse_options,
)
from pellucid.serve.chat.answer_parser import AnswerParser, AnswerReasoning, AnswerText, ChatAnswer, Part, assemble
from pellucid.serve.chat.chat_run import ChatRun, ChatRunRequest, Conversation
from pellucid.serve.chat.messages import tool_choice, tool_of
from pellucid.serve.encoder_inputs import check_task, encoded_texts, prompt_of_name
from pellucid.serve.generation_options import add_stop_tokens
from pellucid.serve.json_schema import closed
from pellucid.serve.pool import ModelPool
from pellucid.serve.request_body import BodyType, RequestBody, listed_texts
from pellucid.serve.routes import Streaming, Tokens, generation_response, plain_route
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.chat.conversation import conversation
from pellucid.tokenize.infill import infill_prompt
from pellucid.weights.sources.source import Silent


@dataclass(frozen=True)
class OllamaChat(ChatRunRequest):
    @classmethod
    def of(cls, body: RequestBody[ChatOptions], llm: BaseLLM[Any]) -> OllamaChat:
        fields, messages = body.fields, _messages(body.raw["messages"])
        tools = [tool_of(f"tools[{at}].function", one.function) for at, one in enumerate(fields.tools)]
        choice, options = tool_choice(tools, None, False, True), options_of(body, llm.recommended)
        schema, variables = fields.answer_schema, fields.variables(llm)
        return cls(ChatRun(llm, Conversation(messages, options, 1, tools, choice, schema, "format", variables)))

    def answer(self, name: str, number: str) -> dict[str, Any]:
        (generation,) = self.run.group.results()
        shown = ChunkLogprobs(self.run.group, self.run.tokenizer).until(None)
        return last_chunk(name, generation, message=_message(self.run.answer(generation)), **shown)

    async def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        """Chunks of the answer. All tool calls are in one chunk, after the text."""
        parts, logprobs = list[Part](), ChunkLogprobs(self.run.group, self.run.tokenizer)
        async for token in tokens:
            parts += token.parts
            new = assemble(one for one in token.parts if isinstance(one, (AnswerText, AnswerReasoning)))
            if new.text or new.reasoning:
                yield chunk(name, message=_message(new), **logprobs.until(token.streamed))
        if calls := assemble(parts).calls:
            yield chunk(name, message=_message(ChatAnswer(calls=calls)))
        (generation,) = self.run.group.results()
        yield last_chunk(name, generation, message=_message(ChatAnswer()), **logprobs.until(None))


def _message(answer: ChatAnswer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["thinking"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {"id": one.id, "function": {"index": at, "name": one.name, "arguments": one.as_object}}
            for at, one in enumerate(answer.calls)
        ]
    return message


def _messages(given: Any) -> list[dict[str, Any]]:
    """Messages in the common form: ``tool_name`` of a tool message becomes ``name``."""
    messages = []
    for at, message in enumerate(conversation(given)):
        if message.get("images"):
            raise InvalidRequest(f"messages[{at}].images: only text is supported, no images")
        message.pop("images", None)
        if "tool_name" in message:
            message.setdefault("name", message.pop("tool_name"))
        messages.append(message)
    return messages


# /api/generate: answers or continues a prompt; with ``suffix``, fills the gap between prompt and suffix.


@dataclass(frozen=True)
class OllamaGenerate:
    """A request that answers a prompt as a chat message (``run``), or continues it as raw text (``run`` is None)."""

    group: Request
    run: ChatRun | None
    tokenizer: Tokenizer

    @classmethod
    def of(cls, body: RequestBody[PromptOptions], llm: BaseLLM[Any]) -> OllamaGenerate:
        fields, size = body.fields, llm.inputs.vocabulary
        prompt, suffix, system, context = fields.prompt, fields.suffix, fields.system, fields.context
        schema, variables = fields.answer_schema, fields.variables(llm)
        if any(token >= size for token in context):
            raise InvalidRequest(f"context={brief(context)}: must be a list of token ids below {size:,}")
        options, raw = options_of(body, llm.recommended), fields.raw or not llm.tokenizer.chat_template
        if suffix or raw:
            for field, given in (("context", context), ("system", system), ("think", variables.get("enable_thinking"))):
                if given:
                    raise InvalidRequest(
                        f"{field} needs the chat template: "
                        f"leave {field} out with raw or suffix, or if the model has no template"
                    )
        if suffix:
            if schema is not None:
                raise InvalidRequest("format does not go with suffix: remove one of the two")
            ids, ends = infill_prompt(llm.tokenizer, prompt, suffix)
            add_stop_tokens(options, ends)
            return cls(llm.request(ids, **options), None, llm.tokenizer)
        if raw:
            if schema is not None:
                options["json_schema"] = closed(schema)
            return cls(llm.request(prompt, **options), None, llm.tokenizer)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        asked = Conversation(
            messages, options, answer_schema=schema, schema_field="format", variables=variables, prefix=context
        )
        run = ChatRun(llm, asked)
        return cls(run.group, run, llm.tokenizer)

    @property
    def groups(self) -> list[Request]:
        return [self.group]

    def answer(self, name: str, number: str) -> dict[str, Any]:
        (generation,) = self.group.results()
        answer = self.run.answer(generation) if self.run else ChatAnswer(generation.text)
        shown = ChunkLogprobs(self.group, self.tokenizer).until(None)
        return last_chunk(name, generation, **_content(answer), **self._context(), **shown)

    def parsers(self) -> list[AnswerParser]:
        return self.run.parsers() if self.run else []

    async def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        logprobs = ChunkLogprobs(self.group, self.tokenizer)
        async for token in tokens:
            if token.parts:
                yield chunk(name, **_content(assemble(token.parts)), **logprobs.until(token.streamed))
        (generation,) = self.group.results()
        yield last_chunk(name, generation, response="", **self._context(), **logprobs.until(None))

    def _context(self) -> dict[str, Any]:
        """Tokens so far. To continue the text, the next request may send these tokens in ``context``."""
        return {"context": [*self.group.prompt, *self.group.outputs[0].ids]} if self.run else {}


def _content(answer: ChatAnswer) -> dict[str, Any]:
    return {"response": answer.text, **({"thinking": answer.reasoning} if answer.reasoning else {})}


# /api/pull: downloads a model and reports its progress.

EVERY = 0.2  # seconds between two lines


class _PullProgress:
    """A ``DownloadProgress`` that stores its last ``state``, which the event loop reads."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"status": "pulling manifest"}

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """Store the state. Called by the download thread."""
        digest = "sha256:" + hashlib.sha256(label.encode()).hexdigest()
        total = {} if total_bytes is None else {"total": total_bytes}
        self.state = {"status": f"pulling {label}", "digest": digest, **total, "completed": done_bytes}


async def pulling(models: ModelPool, name: str) -> AsyncGenerator[dict[str, Any], None]:
    """Progress lines of a download. ``digest``, the hash of a file's name, lets clients tell files apart."""
    progress = _PullProgress()
    work, sent = asyncio.ensure_future(models.pulled(name, progress)), None
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=EVERY)
            if (state := progress.state) is not sent and not work.done():
                sent = state
                yield state
        work.result()
        yield {"status": "success"}
    finally:
        work.cancel()


G = TypeVar("G", bound=GenerateOptions)
SPOKEN = "0.12.0"
"""Version of Ollama whose API the server implements, for clients that request the version."""


def _asked_name(call: ClientCall, fields: OllamaFields) -> str:
    """Name of a request's model, from the field ``model`` or ``name``; empty if the request has none."""
    name = fields.model or fields.name or ""
    return name if name in call.models.names else name.removesuffix(":latest")


def _model(call: ClientCall, fields: OllamaFields) -> str:
    """Name of the model that answers, without Ollama's tag ":latest". The server's first model is the default."""
    return call.models.known(_asked_name(call, fields) or call.models.names[0])


def _keep(call: ClientCall, given: str | float | None) -> Callable[[str], None]:
    """Read the field ``keep_alive``. Returns a function that applies it to a loaded model."""
    if given is None:
        return lambda name: None
    seconds = keep_alive_of(given)
    if seconds is not None and not call.models.local:
        raise InvalidRequest(f"keep_alive={brief(given)}: models on a cluster stay loaded; leave keep_alive out")
    if seconds is not None and call.viewer.key and not call.viewer.admin:
        raise InvalidRequest(
            f"keep_alive={brief(given)}: unloading the model affects other clients and needs an admin key; "
            "leave keep_alive out"
        )
    return lambda name: call.models.keep(name, seconds)


def _generating(
    summary: str, body_type: BodyType[G], read: Callable[[RequestBody[G], BaseLLM[Any]], Streaming], field: str
) -> Route:
    """A route that generates. A request without ``field`` only loads or unloads the model."""

    async def run(call: ClientCall) -> Response:
        body = await call.read(body_type)
        name, keep = _model(call, body.fields), _keep(call, body.fields.keep_alive)
        if not getattr(body.fields, field):
            refuse_options(body, (field, "stream"), f"a request without {field} accepts keep_alive")
            async with call.use(name):
                keep(name)
            reason = "unload" if call.models.expires_in(name) == 0 else "load"
            message = {"role": "assistant", "content": ""}
            done = chunk(name, **({"message": message} if field == "messages" else {"response": ""}))
            return json_response({**done, "done": True, "done_reason": reason})

        def read_and_keep(llm: BaseLLM[Any]) -> Streaming:
            request = read(body, llm)
            keep(name)
            return request

        return await generation_response(call, name, read_and_keep, JSON_LINES if body.fields.stream else None)

    return Route(run, summary, body_type, JSON_LINES.media_type)


async def _embed(call: ClientCall) -> Response:
    start = time.perf_counter()
    body = await call.read(EMBED)
    fields, texts = body.fields, listed_texts("input", body.fields.input)
    name, keep = _model(call, fields), _keep(call, fields.keep_alive)
    known = ("input", "truncate", "dimensions", "prompt_name")
    refuse_options(body, known, "/api/embed accepts input, truncate, dimensions and prompt_name")
    async with call.use(name) as llm:
        check_task(llm, "embed")
        width, prompt = vector_width(llm, fields.dimensions), prompt_of_name(llm, fields.prompt_name)
        keep(name)

        def run() -> dict[str, Any]:
            encoded = encoded_texts(llm, texts, fields.truncate, prompt)
            vectors = embed(llm, encoded, width).tolist() if texts else []
            total = round(1e9 * (time.perf_counter() - start))
            times = {"total_duration": total, "load_duration": 0, "prompt_eval_count": sum(map(len, encoded))}
            return {"model": name, "embeddings": vectors, **times}

        return json_response(await run_in_threadpool(run))


async def _embeddings(call: ClientCall) -> Response:
    """Older form of /api/embed: the vector of one prompt."""
    body = await call.read(OLD_EMBED)
    prompt, keep = body.fields.prompt, _keep(call, body.fields.keep_alive)
    refuse_options(body, ("prompt",), "/api/embeddings accepts prompt")
    name = _model(call, body.fields)
    async with call.use(name) as llm:
        check_task(llm, "embed")
        keep(name)
        vectors = await run_in_threadpool(lambda: embed(llm, llm.inputs.sentences([prompt])))
        return json_response({"embedding": vectors[0].tolist()})


async def _show(call: ClientCall) -> Response:
    fields = (await call.read(SHOW)).fields
    async with call.use(_model(call, fields)) as llm:
        return json_response(await run_in_threadpool(ollama_fields.model_details, llm, fields.verbose))


async def _pull(call: ClientCall) -> Response:
    """Download a model. The response is a stream of progress lines, or one object if ``stream`` is false."""
    fields = (await call.read(PULL)).fields
    name = _asked_name(call, fields)
    if not name:
        raise InvalidRequest("model is missing: the request must have it")
    if call.viewer.key and not call.viewer.admin:
        raise InvalidRequest(f"model={brief(name)}: an admin key is needed to download a model")
    if fields.stream:
        return await event_stream(call, pulling(call.models, name), JSON_LINES)
    await call.cancelled_on_disconnect(call.models.pulled(name, Silent()))
    return json_response({"status": "success"})


def _running(call: ClientCall) -> dict[str, Any]:
    loaded = [(name, call.models.llm(name), call.models.expires_in(name)) for name in call.models.loaded]
    return {"models": [ollama_fields.running_model(name, llm, expires) for name, llm, expires in loaded if llm]}


def _tags(call: ClientCall) -> dict[str, Any]:
    return {"models": [ollama_fields.model_entry(name, call.models.llm(name)) for name in call.models.names]}


OLLAMA = Api(
    "ollama",
    {
        "GET /api/version": plain_route("The version of this API.", lambda call: {"version": SPOKEN}),
        "GET /api/tags": plain_route("The models of this server.", _tags),
        "GET /api/ps": plain_route("The models in memory.", _running),
        "POST /api/show": Route(_show, "Details of a model.", SHOW),
        "POST /api/generate": _generating("Answer a prompt.", GENERATE, OllamaGenerate.of, "prompt"),
        "POST /api/chat": _generating("Answer a conversation.", CHAT, OllamaChat.of, "messages"),
        "POST /api/embed": Route(_embed, "Vectors of texts.", EMBED),
        "POST /api/embeddings": Route(_embeddings, "The vector of a text.", OLD_EMBED),
        "POST /api/pull": Route(_pull, "Download a model.", PULL, JSON_LINES.media_type),
    },
    error_body,
    prefixes=("/api/",),
)
