"""Plugin for LLM: models that Pellucid runs in LLM's own process.

Models are ``pellucid/NAME``. NAME is a model that ``pellucid pull`` has downloaded, or a file or a folder that the
command ``llm pellucid add`` has added. Loaded models stay loaded while the process runs.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import click
import llm
from llm.parts import AttachmentPart, Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart
from pydantic import BeforeValidator, Field, create_model

if TYPE_CHECKING:
    from pellucid.engine.local_request import LocalRequest
    from pellucid.engine.output import Generation, TokenOutput
    from pellucid.llm import LLM
    from pellucid.serve.chat.answer_parser import Part
    from pellucid.serve.chat.chat_run import ChatRun

PREFIX = "pellucid/"


class Store:
    """The file with the added models, and with the kinds of models that were looked at before.

    ``added`` maps names to paths. ``kinds`` maps paths to the time of their last change, and to True for encoders and
    False for models that generate. The file has the kinds because opening all models would slow down every command of
    LLM.
    """

    def __init__(self) -> None:
        self._path = llm.user_dir() / "pellucid.json"
        saved = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.added: dict[str, str] = saved.get("added", {})
        self.kinds: dict[str, list[Any]] = saved.get("kinds", {})

    def save(self) -> None:
        """Write the file."""
        self._path.write_text(json.dumps({"added": self.added, "kinds": self.kinds}, indent=2))

    def models(self) -> dict[str, str]:
        """The paths of all models by name. An added model hides a downloaded model of the same name."""
        from pellucid.weights.store import installed

        return {**{one.name: str(one.path) for one in installed() if one.complete}, **self.added}

    def encoders(self) -> dict[str, str]:
        """The sentence encoders among the models."""
        return {name: path for name, path in self.models().items() if self._is_encoder(path)}

    def generators(self) -> dict[str, str]:
        """The models that generate text."""
        return {name: path for name, path in self.models().items() if self._is_encoder(path) is False}

    def _is_encoder(self, path: str) -> bool | None:
        """True for a sentence encoder; None if the file is missing or is no model."""
        try:
            changed = os.stat(path).st_mtime_ns
        except OSError:
            return None
        if self.kinds.get(path, [None])[0] != changed:
            self.kinds[path] = [changed, _opened_encoder(path)]
            self.save()
        return self.kinds[path][1]  # type: ignore[no-any-return]


def _opened_encoder(path: str) -> bool | None:
    from pellucid.errors import PellucidError
    from pellucid.model.read import read_model
    from pellucid.weights.open import open_checkpoint

    try:
        checkpoint = open_checkpoint(path)
    except PellucidError:
        return None
    try:
        return not read_model(checkpoint).spec.generates
    except PellucidError:
        return None
    finally:
        checkpoint.close()


@functools.cache
def loaded(path: str) -> LLM:
    """The loaded model of a path."""
    import pellucid

    return pellucid.load(path)


@functools.cache
def options_class() -> type[llm.Options]:
    """The options of a generation, as Pellucid declares them. The command line gives texts, which are parsed."""
    from pellucid.sample.step import options_of, owners

    fields: dict[str, Any] = {}
    for name, owner in owners().items():
        field = options_of(owner)[name]
        kind: Any = {float: float, int: int}.get(type(field.default), Any)
        if field.metadata["parse"]:
            kind = Annotated[Any, BeforeValidator(_parsed(field.metadata["parse"]))]
        fields[name] = (kind | None if kind in (float, int) else kind, Field(None, description=field.metadata["help"]))
    fields |= {
        "max_new_tokens": (int | None, Field(None, description="Maximum generated tokens.")),
        "max_time": (float | None, Field(None, description="Maximum seconds of the generation.")),
        "seed": (int | None, Field(None, description="Seed of the random numbers.")),
        "stop": (str | list[str] | None, Field(None, description="Text that ends the answer.")),
        "ignore_eos": (bool | None, Field(None, description="Continue after the model's end-of-text tokens.")),
    }
    return create_model("Options", __base__=llm.Options, **fields)


def _parsed(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    return lambda value: parse(value) if isinstance(value, str) else value


class _Pellucid:
    """The common part of the model and of its asynchronous form."""

    can_stream, supports_schema, supports_tools = True, True, True

    def __init__(self, name: str, path: str) -> None:
        self.model_id, self._path = PREFIX + name, path

    @property
    def Options(self) -> type[llm.Options]:  # LLM's name
        """The options of a generation. They are built when LLM asks for them, because this imports NumPy."""
        return options_class()

    def run(self, prompt: llm.Prompt) -> ChatRun | TextRun:
        """The prompt as a request of the engine.

        Raises:
            PellucidError: the request is invalid, or the model cannot be loaded.
        """
        model = loaded(self._path)
        options = {name: value for name, value in prompt.options if value is not None}
        if model.tokenizer.chat_template is None:
            return TextRun(model, prompt, options)
        from pellucid.serve.chat.chat_run import ChatRun, Conversation
        from pellucid.serve.chat.messages import tool, tool_choice

        tools = [
            tool(f"tools[{at}]", one.name, one.description, one.input_schema or None)
            for at, one in enumerate(prompt.tools)
            if isinstance(one, llm.Tool)
        ]
        conversation = Conversation(
            messages=[entry for message in prompt.messages for entry in chat_messages(message)],
            options=options,
            tools=tools,
            choice=tool_choice(tools, None, required=False, parallel=True),
            answer_schema=prompt.schema,
            schema_field="schema",
        )
        return ChatRun(model, conversation)


class TextRun:
    """A request of a model without a chat template: it continues the prompt as a text.

    It has the interface of ``ChatRun``.
    """

    def __init__(self, model: LLM, prompt: llm.Prompt, options: dict[str, Any]) -> None:
        from pellucid.errors import InvalidRequest

        if prompt.tools or any(message.role not in ("user", "assistant") for message in prompt.messages):
            raise InvalidRequest(
                "the model has no chat template, so it takes no system prompt and no tools: leave them out"
            )
        if prompt.schema is not None:
            options["json_schema"] = prompt.schema
        self.group = model.request("".join(map(text_of, prompt.messages)), **options)

    def parser(self) -> TextRun:
        """A parser of the answer: all of it is text."""
        return self

    def push(self, text: str, *, last: bool = False) -> Sequence[Part]:
        """The parts of a text."""
        from pellucid.serve.chat.answer_parser import AnswerText

        return [AnswerText(text)] if text else []

    async def stream(self) -> AsyncGenerator[tuple[TokenOutput, Sequence[Part]], None]:
        """Run the request. Yields each token with its parts."""
        async with aclosing(self.group.stream()) as tokens:
            async for token in tokens:
                yield token, self.push(token.text)


class PellucidModel(_Pellucid, llm.Model):
    """A model that generates."""

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None = None
    ) -> Iterator[StreamEvent]:
        run = self.run(prompt)
        parser, answer = run.parser(), Answer(response)
        try:
            for token in cast("LocalRequest", run.group):
                yield from answer.events(parser.push(token.text, last=token.finish_reason is not None))
        finally:
            answer.end(run.group.result())


class AsyncPellucidModel(_Pellucid, llm.AsyncModel):
    """A model that generates, for an event loop."""

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None = None,
    ) -> AsyncGenerator[StreamEvent, None]:
        import asyncio

        run = await asyncio.to_thread(self.run, prompt)
        answer = Answer(response)
        try:
            async with aclosing(run.stream()) as tokens:
                async for _, parts in tokens:
                    for event in answer.events(parts):
                        yield event
        finally:
            answer.end(run.group.result())


class Answer:
    """The parts of an answer as LLM's events. ``end`` gives the complete calls and the counts to ``response``."""

    def __init__(self, response: llm.Response | llm.AsyncResponse) -> None:
        self._response, self._calls = response, list[list[str]]()

    def events(self, parts: Iterable[Part]) -> Iterator[StreamEvent]:
        """Convert parts to events."""
        from pellucid.serve.chat.answer_parser import AnswerReasoning, AnswerText, CallStart

        for part in parts:
            if isinstance(part, AnswerText):
                yield StreamEvent("text", part.text)
            elif isinstance(part, AnswerReasoning):
                yield StreamEvent("reasoning", part.text)
            elif isinstance(part, CallStart):
                self._calls.append([part.id, part.name, ""])
                yield StreamEvent("tool_call_name", part.name, tool_call_id=part.id)
            else:
                self._calls[part.number][2] += part.text
                yield StreamEvent("tool_call_args", part.text, tool_call_id=self._calls[part.number][0])

    def end(self, generation: Generation) -> None:
        """Report the calls, the token counts and the timings."""
        for identity, name, arguments in self._calls:
            try:
                parsed = json.loads(arguments)
            except ValueError:
                continue  # max_new_tokens has cut the call off
            self._response.add_tool_call(llm.ToolCall(name, parsed, identity))
        usage = generation.usage
        details = {"cached_tokens": usage.cached_tokens} if usage.cached_tokens else None
        self._response.set_usage(input=usage.prompt_tokens, output=usage.generated_tokens, details=details)
        facts = generation.as_dict()
        self._response.response_json = {name: facts[name] for name in ("finish_reason", "seed", "timings")}


def text_of(message: Message) -> str:
    """The text of a message. Raises ValueError if the message has an attachment."""
    if any(isinstance(part, AttachmentPart) for part in message.parts):
        raise ValueError("Pellucid reads no attachments: leave them out")
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def chat_messages(message: Message) -> list[dict[str, Any]]:
    """A message of LLM as messages of OpenAI's form. Each tool result becomes a message of its own."""
    results = [part for part in message.parts if isinstance(part, ToolResultPart)]
    if results:
        return [
            {
                "role": "tool",
                "name": part.name,
                "tool_call_id": part.tool_call_id or part.name,
                "content": part.output if part.exception is None else f"Error: {part.exception}",
            }
            for part in results
        ]
    made: dict[str, Any] = {"role": message.role, "content": text_of(message)}
    reasoning = "".join(part.text for part in message.parts if isinstance(part, ReasoningPart))
    if reasoning:
        made["reasoning_content"] = reasoning
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    if calls:
        made["tool_calls"] = [
            {
                "id": part.tool_call_id or part.name,
                "type": "function",
                "function": {"name": part.name, "arguments": part.arguments},
            }
            for part in calls
        ]
    return [made]


class PellucidEmbedder(llm.EmbeddingModel):
    """A sentence encoder."""

    batch_size = 32

    def __init__(self, name: str, path: str) -> None:
        self.model_id, self._path = PREFIX + name, path

    def embed_batch(self, items: Iterable[str | bytes]) -> Iterator[list[float]]:
        texts = [item for item in items if isinstance(item, str)]
        return iter(loaded(self._path).embed(texts).tolist()) if texts else iter(())


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    for name, path in Store().generators().items():
        register(PellucidModel(name, path), AsyncPellucidModel(name, path))


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    for name, path in Store().encoders().items():
        register(PellucidEmbedder(name, path))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    @cli.group()
    def pellucid() -> None:
        "Models that Pellucid runs in this process"

    @pellucid.command()
    @click.argument("path", type=click.Path(exists=True, path_type=Path))
    @click.option("--name", help="Name of the model. Default: the name of the file or the folder.")
    def add(path: Path, name: str | None) -> None:
        "Add the model in a file or a folder"
        store, path = Store(), path.absolute()
        name = name or (path.name if path.is_dir() else path.stem)
        if _opened_encoder(str(path)) is None:
            raise click.ClickException(f"{path}: is no model that Pellucid can read (pellucid info {path} says why)")
        store.added[name] = str(path)
        store.save()
        click.echo(f"{PREFIX}{name}: {path}")

    @pellucid.command(name="list")
    def list_() -> None:
        "List the models and their paths"
        for name, path in Store().models().items():
            click.echo(f"{PREFIX}{name}: {path}")

    @pellucid.command()
    @click.argument("name")
    def remove(name: str) -> None:
        "Remove a model that `add` has added. Its file stays"
        store = Store()
        if store.added.pop(name.removeprefix(PREFIX), None) is None:
            known = ", ".join(store.added) or "none"
            raise click.ClickException(f"no model {name!r} was added; added are: {known}")
        store.save()
