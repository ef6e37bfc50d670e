"""Options of commands that load a model and generate, and loading with progress bars."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from msgspec.structs import replace

from pellucid.cli import common
from pellucid.cli.command import OptionGroup, with_parameters
from pellucid.errors import InvalidRequest, brief, reason
from pellucid.load_options import LOAD_OPTIONS, LoadOption, LoadOptions

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs
    from pellucid.llm import LLM
    from pellucid.model.outputs import Task
    from pellucid.trace.control_vector import ControlVector, RegisteredVectors

# The options of commands that load a model, and loading with progress bars.
#
# A command takes ``loading: Loading`` (or ``EncoderLoading``, ``DraftLoading``, ``ServerLoading``), which is a
# ``LoadOptions``. The declarations of its fields are also the declarations of the command line options.


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


# Generation options on the command line: of sampler steps, of ``Options``, and of control vectors.

# A command that takes ``**sampling`` is declared with ``sampling=True``. The options are built only for the command
# that runs, because building the options imports the sampler steps and NumPy.

TEXTS = {"json_schema", "regex", "grammar"}
"""Options whose values are long texts, which may be in a file."""


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command's function with a parameter for each generation option, as Typer needs it."""
    declared = inspect.signature(command, eval_str=True).parameters
    kept = [parameter for parameter in declared.values() if parameter.kind is not parameter.VAR_KEYWORD]
    names = {parameter.name for parameter in kept}
    parameters = [*kept, *(parameter for parameter in _parameters() if parameter.name not in names)]

    def call(**values: Any) -> None:
        command(**values)

    return with_parameters(call, command, parameters)


def checked(sampling: Mapping[str, Any], **usual: Any) -> dict[str, Any]:
    """The given options, and the ``usual`` values of options that are not given.

    The options are checked here, so that errors appear before a model is loaded. ``@FILE`` as the value of one of
    ``TEXTS`` stands for the text of the file.
    """
    from pellucid.sample.options import Options

    options = {**usual, **{name: value for name, value in sampling.items() if value is not None}}
    for name in options.keys() & TEXTS:
        options[name] = common.text_or_file(options[name])
    Options.of(**options)
    return options


def _parameters() -> list[inspect.Parameter]:
    from pellucid.sample.options import Options
    from pellucid.sample.step import options_of, owners

    parameters = []
    for name, owner in owners().items():
        field = options_of(owner)[name]
        default = field.default if isinstance(field.default, (int, float)) else None
        more = " @FILE: the text of a file." if name in TEXTS else ""
        parse = field.metadata["parse"] or (common.to_float if isinstance(default, float) else common.to_int)
        parameters.append(_parameter(name, field.metadata["help"] + more, parse, default))
    own = options_of(Options)
    return [*parameters, *(_parameter(name, own[name].metadata["help"], parse) for name, parse in OWN.items())]


def _parameter(name: str, help: str, parse: Callable[[str], Any] | None, default: Any = None) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    if default is not None:
        help += f" [default: {default:g}]"
    kind: Any
    if parse is None:
        kind, option = list[str] | None, typer.Option(flag, help=help, metavar="TEXT")
    elif parse is bool:
        kind, option = bool | None, typer.Option(flag, help=help)
    else:
        metavar = "N" if parse is common.to_int else "NUMBER" if parse is common.to_float else "TEXT"
        kind, option = Any, typer.Option(flag, help=help, parser=parse, metavar=metavar)
    annotation = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


OWN: Mapping[str, Any] = {
    "samplers": lambda text: [name.strip() for name in text.replace(";", ",").split(",") if name.strip()],
    "seed": common.to_int,
    "stop": None,
    "stop_token_ids": lambda text: [common.to_int(part) for part in text.split(",") if part.strip()],
    "ignore_eos": bool,
    "max_new_tokens": common.to_int,
    "max_time": common.to_float,
}
"""The fields of ``Options`` that are options of every command that generates, and what reads their texts."""


# Options of control vectors: of commands that generate, as in llama.cpp, and of servers.

VectorFolder = Annotated[
    str | None,
    common.text(
        "FOLDER",
        "Control vectors (.gguf, .safetensors) and probes (.safetensors) that requests name in the fields steer and "
        "probes.",
        ...,
    ),
]


Guards = Annotated[
    list[str] | None,
    typer.Option(
        help="End every text before a token whose score by a probe of --vectors is above a limit; may be repeated.",
        metavar="NAME:LIMIT",
    ),
]


@dataclass(frozen=True)
class ControlOptions:
    """Control vectors of a command that generates. Several vectors are added up."""

    control_vector: Annotated[
        list[str] | None,
        typer.Option(
            help="Steer the model with a control vector (.gguf of llama.cpp or repeng, .safetensors), times a scale; "
            "may be repeated.",
            metavar="FILE[:SCALE]",
        ),
    ] = None
    control_vector_layer_range: Annotated[
        tuple[int, int] | None,
        typer.Option(help="First and last layer of the control vectors. Default: all layers.", metavar="START END"),
    ] = None

    def vector(self) -> ControlVector | None:
        """The sum of the vectors, None without vectors.

        Raises:
            FileFormatError: a file is damaged.
            InvalidRequest: a scale is no number, or no vector has a layer of the range.
        """
        layers = self.control_vector_layer_range
        if not self.control_vector:
            if layers is not None:
                raise InvalidRequest("--control-vector-layer-range: add --control-vector FILE")
            return None
        from pellucid.trace.control_vector import ControlVector, total

        given = [part for text in self.control_vector for part in _parts(text)]
        vector = total([(scale, ControlVector.open(path)) for path, scale in given])
        return vector if layers is None else vector.only(range(layers[0], layers[1] + 1))


def steered(options: Mapping[str, Any], vector: ControlVector | None, llm: LLM) -> dict[str, Any]:
    """Options of a request with the edits of a control vector."""
    if vector is None:
        return dict(options)
    try:
        vector.check_fits(llm.points)
    except InvalidRequest as error:
        raise InvalidRequest(f"--control-vector: {error}") from None
    return {**options, "edits": vector.edits()}


def registered(folder: str | None, guards: list[str] | None = None) -> RegisteredVectors:
    """The control vectors and probes of ``--vectors``, with the limits of ``--guard``."""
    from pellucid.trace.control_vector import NO_VECTORS, RegisteredVectors

    known, limits = NO_VECTORS if folder is None else RegisteredVectors.open(folder), dict[str, float]()
    for text in guards or ():
        name, _, limit = text.rpartition(":")
        try:
            limits[name] = float(limit)
        except ValueError:
            raise InvalidRequest(f"--guard {common.visible(text)}: must be NAME:LIMIT, such as toxicity:0.9") from None
    return known.guarded(limits) if limits else known


def _parts(text: str) -> list[tuple[str, float]]:
    """The files and scales of ``FILE[:SCALE]``, or of a list of them with commas, as llama.cpp takes it."""
    if os.path.exists(text):
        return [(text, 1.0)]
    return [_scaled(part) for part in text.split(",")]


def _scaled(text: str) -> tuple[str, float]:
    path, colon, scale = text.rpartition(":")
    if not colon or os.path.exists(text):
        return text, 1.0
    try:
        return path, float(scale)
    except ValueError:
        if os.path.exists(path):
            raise InvalidRequest(
                f"--control-vector {common.visible(text)}: {common.visible(scale)} is no scale"
            ) from None
        return text, 1.0  # a colon in the name of a file
