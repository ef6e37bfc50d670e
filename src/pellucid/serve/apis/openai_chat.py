"""OpenAI's API: models, and /v1/chat/completions, which answers with text, reasoning and tool calls.

From HTTP to a request of the engine: `generating_route` reads the body into the fields below; `ChatRequest.of` makes
them a `Conversation`; `ChatRun` (``serve/chat/chat_run.py``) applies the chat template and calls `BaseLLM.request`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from pellucid.base_llm import BaseLLM
from pellucid.engine.output import Generation
from pellucid.errors import InvalidRequest
from pellucid.sample.logprobs import joined
from pellucid.serve import openai_parts as openai
from pellucid.serve.api import DATA_SSE, Api, ClientCall, Events
from pellucid.serve.apis.llamacpp_fields import with_telemetry
from pellucid.serve.apis.openai_completions import COMPLETION, EMBEDDING, CompletionRequest, embeddings
from pellucid.serve.chat.answer_parser import AnswerReasoning, AnswerText, CallArguments, CallStart, ChatAnswer, Part
from pellucid.serve.chat.chat_run import ChatRun, ChatRunRequest, Conversation
from pellucid.serve.chat.messages import MAX_TOOLS, ChatMessage, FunctionFields, Tool, ToolChoice, tool_choice, tool_of
from pellucid.serve.generation_options import ignored
from pellucid.serve.request_body import BodyType, Choices, Fields, ModelFields, RequestBody, TopLogprobs
from pellucid.serve.routes import Tokens, generating_route, model_route, plain_route


class FunctionName(Fields, frozen=True):
    """The name of a function."""

    name: str


class NamedFunction(Fields, frozen=True, tag_field="type", tag="function"):
    """A function that must be called, or an entry of the allowed tools."""

    function: FunctionName


class AllowedFunctions(Fields, frozen=True):
    """Functions that the model may call. If ``mode`` is "required", the model must call a function."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Meta(min_length=1)]


class AllowedTools(Fields, frozen=True, tag_field="type", tag="allowed_tools"):
    """A choice that allows only some tools."""

    allowed_tools: AllowedFunctions


class FlatNamedFunction(FunctionName, frozen=True, tag_field="type", tag="function"):
    """``NamedFunction`` in the form of the Responses API."""


class FlatAllowedTools(Fields, frozen=True, tag_field="type", tag="allowed_tools"):
    """``AllowedTools`` in the form of the Responses API."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatNamedFunction], Meta(min_length=1)]


CHOICES = Meta(title="none, auto, required, or an object that names a function")
ToolChoiceValue = Annotated[Literal["none", "auto", "required"] | NamedFunction | AllowedTools | None, CHOICES]
FlatToolChoiceValue = Annotated[
    Literal["none", "auto", "required"] | FlatNamedFunction | FlatAllowedTools | None, CHOICES
]


def choice_of(
    tools: Sequence[Tool], choice: ToolChoiceValue | FlatToolChoiceValue, parallel: bool
) -> tuple[Sequence[Tool], ToolChoice]:
    """The tools that the model sees, and the tools that it may call, from ``tool_choice``."""
    if choice == "none":
        return [], ToolChoice()
    if choice is None or isinstance(choice, str):
        return tools, tool_choice(tools, None, choice == "required", parallel)
    if isinstance(choice, (NamedFunction, FlatNamedFunction)):  # exactly one call
        return tools, tool_choice(tools, [_name(choice)], required=True, parallel=False)
    allowed = choice.allowed_tools if isinstance(choice, AllowedTools) else choice
    return tools, tool_choice(tools, list(map(_name, allowed.tools)), allowed.mode == "required", parallel)


def _name(choice: NamedFunction | FlatNamedFunction) -> str:
    return choice.name if isinstance(choice, FlatNamedFunction) else choice.function.name


class ResponseSchema(Fields, frozen=True):
    """The JSON schema of an answer."""

    schema: dict[str, Any]
    name: Annotated[Any, ignored("response_format.json_schema.name")] = None
    description: Annotated[Any, ignored("response_format.json_schema.description")] = None
    strict: Annotated[Any, ignored("response_format.json_schema.strict")] = None


class ResponseFormat(Fields, frozen=True):
    """The field ``response_format`` of chat completions. ``schema`` belongs to the type json_object."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: ResponseSchema | None = None
    schema: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing: the type json_schema needs it")
        for name, kind in (("json_schema", "json_schema"), ("schema", "json_object")):
            if getattr(self, name) is not None and self.type != kind:
                raise ValueError(f"{name} does not go with the type {self.type}: remove one of the two")

    @property
    def answer_schema(self) -> Any:
        if self.json_schema is not None:
            return self.json_schema.schema
        return {"type": "object"} if self.type == "json_object" and self.schema is None else self.schema


class FlatResponseFormat(Fields, frozen=True):
    """The field ``text.format`` of the Responses API."""

    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | None = None
    name: Annotated[Any, ignored("text.format.name")] = None
    description: Annotated[Any, ignored("text.format.description")] = None
    strict: Annotated[Any, ignored("text.format.strict")] = None

    def __post_init__(self) -> None:
        if self.type == "json_schema" and self.schema is None:
            raise ValueError("schema is missing: the type json_schema needs it")
        if self.type == "text" and self.schema is not None:
            raise ValueError("schema does not go with the type text: remove one of the two")

    @property
    def answer_schema(self) -> Any:
        return {"type": "object"} if self.type == "json_object" and self.schema is None else self.schema


class FunctionTool(Fields, frozen=True):
    """An entry of ``tools`` of chat completions."""

    type: Literal["function"]
    function: FunctionFields


class ConversationFields(ModelFields, frozen=True, kw_only=True):
    """Fields of a chat request that the chat template reads."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None

    def variables(self) -> dict[str, Any]:
        variables = dict(self.chat_template_kwargs)
        for name in ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "self"):
            if name in variables:
                raise InvalidRequest(f"chat_template_kwargs has {name}: the server sets it; leave it out")
        if self.reasoning_effort is not None:
            variables["reasoning_effort"] = self.reasoning_effort
        if self.enable_thinking is not None:
            variables["enable_thinking"] = self.enable_thinking
        if variables.get("reasoning_effort") == "none":
            variables.setdefault("enable_thinking", False)
        return variables


class ChatFields(ConversationFields, frozen=True, kw_only=True):
    """Fields of a chat request. The last three fields come from llama.cpp (``llamacpp_fields.py``)."""

    n: Choices = 1
    stream: bool = False
    stream_options: openai.StreamOptions = openai.StreamOptions()
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[Sequence[FunctionTool], Meta(max_length=MAX_TOOLS)] = ()
    tool_choice: ToolChoiceValue = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    timings_per_token: bool = False
    return_progress: bool = False
    verbose: bool = False


CHAT = BodyType(ChatFields, openai.OPENAI_RULES)


@dataclass(frozen=True)
class ChatRequest(ChatRunRequest):
    """A chat request that runs on the engine.

    ``logprobs`` is the number of reported alternatives of each token (None: no log-probabilities). With ``with_usage``,
    a stream ends with token counts.
    """

    logprobs: int | None
    with_usage: bool

    @classmethod
    def of(cls, body: RequestBody[ChatFields], llm: BaseLLM[Any]) -> ChatRequest:
        fields, options = body.fields, body.options(llm.recommended)
        if fields.top_logprobs is not None and not fields.logprobs:
            raise InvalidRequest(f"top_logprobs={fields.top_logprobs}: needs logprobs=true")
        if fields.add_generation_prompt is fields.continue_final_message:
            raise InvalidRequest(
                "add_generation_prompt and continue_final_message must be different: leave add_generation_prompt out"
            )
        if fields.logprobs:
            options["logprobs"] = fields.top_logprobs or 0
        tools, choice = offered_tools(fields.tools, fields.tool_choice, fields.parallel_tool_calls)
        conversation = Conversation(
            body.raw["messages"],
            options,
            fields.n,
            tools,
            choice,
            fields.response_format and fields.response_format.answer_schema,
            variables=fields.variables(),
            continues_last=fields.continue_final_message,
        )
        logprobs = options["logprobs"] if fields.logprobs else None
        return cls(ChatRun(llm, conversation), logprobs, fields.stream_options.include_usage)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        group, generations = self.run.group, self.run.group.results()
        answers = [self.run.answer(one) for one in generations]
        scores = [openai.scores_field(output, self.run.tokenizer) for output in group.outputs]
        return {
            **openai.response_head(f"chatcmpl-{number}", "chat.completion", name),
            "choices": [
                {**self._choice(at, one, answer), **own}
                for at, (one, answer, own) in enumerate(zip(generations, answers, scores))
            ],
            "usage": openai.usage(generations, sum(self.run.tokens(one.reasoning) for one in answers)),
        }

    async def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        """Chunks of the response. Each chunk has the text that a token completes."""
        run, begin = self.run, self.blank(name, number)
        called, reasoning = set[int](), [""] * run.count
        for at in range(run.count):
            yield {**begin, "choices": [_delta(at, {"role": "assistant", "content": ""}, None)]}
        async for at, group, token, parts, _ in tokens:
            logprobs = None
            if self.logprobs is not None and token.logprobs is not None:
                logprobs = openai.chat_logprobs(joined([token.logprobs], self.logprobs), run.tokenizer)
            deltas = [_part_delta(part) for part in parts]
            scores = openai.scores_of_token(token, run.tokenizer)
            if (logprobs or scores) and not deltas:
                deltas = [{"content": ""}]
            for delta in deltas:
                yield {**begin, "choices": [{**_delta(at, delta, logprobs), **scores}]}
                logprobs, scores = None, {}
            reasoning[at] += "".join(part.text for part in parts if isinstance(part, AnswerReasoning))
            called |= {at} if any(isinstance(part, CallStart) for part in parts) else set()
            if token.finish_reason:
                reason = finish_reason(token.finish_reason, at in called)
                last = {**_delta(at, {}, None), "finish_reason": reason}
                yield {**begin, "choices": [{**last, **openai.receipt_field(group.results()[at])}]}
        if self.with_usage:
            used = openai.usage(run.group.results(), sum(map(run.tokens, reasoning)))
            yield {**begin, "choices": [], "usage": used}

    def blank(self, name: str, number: str) -> dict[str, Any]:
        head = openai.response_head(f"chatcmpl-{number}", "chat.completion.chunk", name)
        return {**head, "choices": [_delta(0, {}, None)]}

    def _choice(self, at: int, generation: Generation, answer: ChatAnswer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
                for one in answer.calls
            ]
        logprobs = generation.logprobs
        return {
            "index": at,
            "message": message,
            "logprobs": None if logprobs is None else openai.chat_logprobs(logprobs, self.run.tokenizer),
            "finish_reason": finish_reason(generation.finish_reason, bool(answer.calls)),
            **openai.receipt_field(generation),
        }


def finish_reason(reason: str | None, called: bool) -> str:
    """OpenAI's finish reason."""
    name = openai.REASONS[reason]
    return "tool_calls" if called and name == "stop" else name


def _delta(number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _part_delta(part: Part) -> dict[str, Any]:
    """A part of an answer as the delta of a chunk."""
    if isinstance(part, AnswerText):
        return {"content": part.text}
    if isinstance(part, AnswerReasoning):
        return {"reasoning_content": part.text}
    if isinstance(part, CallStart):
        function = {"name": part.name, "arguments": ""}
        return {"tool_calls": [{"index": part.number, "id": part.id, "type": "function", "function": function}]}
    assert isinstance(part, CallArguments)
    return {"tool_calls": [{"index": part.number, "function": {"arguments": part.text}}]}


def offered_tools(
    tools: Sequence[FunctionTool], choice: ToolChoiceValue, parallel: bool
) -> tuple[Sequence[Tool], ToolChoice]:
    """The tools that the model sees, and the tools that it may call."""
    functions = [tool_of(f"tools[{at}].function", one.function) for at, one in enumerate(tools)]
    return choice_of(functions, choice, parallel)


def model(call: ClientCall, name: str) -> dict[str, Any]:
    """Entry of a list of models."""
    return {"id": name, "object": "model", "created": call.models.created, "owned_by": "pellucid"}


OPENAI = Api(
    "openai",
    {
        "GET /v1/models": plain_route(
            "The models of this server.",
            lambda call: {"object": "list", "data": [model(call, name) for name in call.models.names]},
        ),
        "GET /v1/models/{name:path}": plain_route(
            "A model of this server.", lambda call: model(call, call.models.known(call.request.path_params["name"]))
        ),
        "POST /v1/chat/completions": generating_route(
            "Answer a conversation.", CHAT, with_telemetry(ChatRequest.of), DATA_SSE
        ),
        "POST /v1/completions": generating_route(
            "Continue a text.", COMPLETION, with_telemetry(CompletionRequest.of), DATA_SSE
        ),
        "POST /v1/embeddings": model_route("Vectors of texts.", EMBEDDING, embeddings),
    },
    openai.error_body,
    prefixes=("/",),
)
