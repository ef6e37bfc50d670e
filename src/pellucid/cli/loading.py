"""The options of commands that load a model, and loading with progress bars.

A command takes ``loading: Loading`` (or ``EncoderLoading``, ``DraftLoading``, ``ServerLoading``), which is a
``LoadOptions``. The declarations of its fields are also the declarations of the command line options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from msgspec.structs import replace

from pellucid.cli import common
from pellucid.cli.command import OptionGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief, reason
from pellucid.load_options import LOAD_OPTIONS, LoadOption, LoadOptions

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs
    from pellucid.llm import LLM
    from pellucid.model.outputs import Task


def _options(*names: str) -> dict[str, Any]:
    """The options of these fields of ``LoadOptions``, by name, from their declarations."""
    return {name: _option(name, LOAD_OPTIONS[name]) for name in names}


def _option(name: str, declared: LoadOption) -> Any:
    match declared.value:
        case "":
            return Annotated[bool, common.flag(f"--{name}", declared.help, ...)]
        case "N":
            return Annotated[int | None, common.count(declared.help, ...)]
        case "NUMBER":
            return Annotated[float | None, common.number(declared.help, ...)]
        case value:
            several = "may be repeated" in declared.help
            return Annotated[list[str] | None if several else str | None, common.text(value, declared.help, ...)]


SHARED = _options("threads", "pin", "context", "precise", "activations", "kv_cache")
DRAFT = _options("draft")
ENCODER = _options("task", "adapter")
SERVER = {**ENCODER, **_options("dictionaries", "cache_memory")}
PreciseLoading: TypeAlias = Annotated[LoadOptions, OptionGroup(_options("precise"))]
Loading: TypeAlias = Annotated[LoadOptions, OptionGroup(SHARED)]
EncoderLoading: TypeAlias = Annotated[LoadOptions, OptionGroup({**SHARED, **ENCODER})]
DraftLoading: TypeAlias = Annotated[LoadOptions, OptionGroup({**SHARED, **DRAFT})]
ServerLoading: TypeAlias = Annotated[LoadOptions, OptionGroup({**SHARED, **DRAFT, **SERVER})]


def load(model: str, options: LoadOptions, before: Callable[[Inputs], object] | None = None) -> LLM:
    """Load a model with progress bars. ``before`` refuses requests that the model cannot run, before kernels compile.

    Raises: as ``pellucid.load``.
    """
    from pellucid.loading import load_model

    with common.progress() as bars:
        return load_model(model, options, progress=bars, compiling=bars.compiling, before=before)


COMMANDS: Mapping[Task, str] = {
    "generate": "run",
    "embed": "embed",
    "classify": "classify",
    "tag": "tag",
    "answer": "answer",
    "fill": "fill",
    "decide": "decide",
    **dict.fromkeys(("sparse", "tokens"), "rerank"),
}
"""The command for the outputs of a model, by its task."""


def check_task(inputs: Inputs, *tasks: Task) -> None:
    """Refuse a model that cannot do any of ``tasks``; the message names the command for it."""
    inputs.check_task(*tasks, use=f"pellucid {COMMANDS[inputs.spec.task]}", load_as="give this model --task ")


def with_template(options: LoadOptions, file: str | None) -> LoadOptions:
    """``options`` with the chat template in ``file``, if a file is given."""
    return options if file is None else replace(options, chat_template=template_of(file))


def template_of(file: str) -> str:
    """Read a chat template from a file."""
    from pellucid.tokenize.chat.template import SOURCE_CHARACTERS

    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read(SOURCE_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"chat_template={brief(file)}: cannot be read: {reason(error)}: give a file with a chat template (Jinja), "
            "or leave the option out to use the model's own"
        ) from error
    if len(text) > SOURCE_CHARACTERS:
        raise InvalidRequest(
            f"chat_template={brief(file)}: has more than {SOURCE_CHARACTERS:,} characters: give a chat template"
        )
    return text
