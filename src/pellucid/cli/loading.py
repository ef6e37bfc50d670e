"""The options of commands that load a model, and loading with progress bars.

A command takes ``loading: Loading`` (or ``EncoderLoading``, ``DraftLoading``, ``ServerLoading``), which is a
``LoadOptions``. The tables below map its fields to the types and help texts of their command line options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from msgspec.structs import replace

from pellucid.cli import common
from pellucid.cli.command import OptionGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief, reason
from pellucid.load_options import LoadOptions

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs
    from pellucid.llm import LLM
    from pellucid.model.outputs import Task

Precise = Annotated[
    bool,
    common.flag(
        "--precise",
        "Use 24-bit activations and float32 keys and values. The results are those of a float32 run with the file's "
        "weights. Slower for long texts.",
        ...,
    ),
]
SHARED: dict[str, Any] = {
    "threads": Annotated[
        int | None,
        common.count("Threads that run a step. Default: one for each physical core, within a container's limit.", ...),
    ],
    "pin": Annotated[
        str | None,
        common.text(
            "cores|nodes|none",
            "cores: bind each thread to its own core (for one model); nodes: to the cores of a memory node; none: do "
            "not bind. Default: nodes on a machine with several sockets, otherwise none.",
            ...,
        ),
    ],
    "context": Annotated[
        int | None,
        common.count(
            "Maximum tokens of a prompt and its generated text together. Default: the context that the file states, "
            "or less if the free memory is too small for it.",
            ...,
        ),
    ],
    "precise": Precise,
    "activations": Annotated[
        int | None,
        common.count(
            "Bits of activations: 8 (the default) or 16, which is closer to float32, and slower; --precise has 24.", ...
        ),
    ],
    "kv_cache": Annotated[
        str | None,
        common.text(
            "TYPE",
            "Data type of keys and values: f16, bf16, q8_0 (half the memory), or f32 (no rounding). Default: f32 "
            "with --precise; otherwise bf16, or f16 for floating-point weights and keys with biases.",
            ...,
        ),
    ],
}
DRAFT: dict[str, Any] = {
    "draft": Annotated[
        str | None,
        common.text(
            "MODEL",
            "Draft model for MODEL (if there are several, for the first MODEL): a smaller model with the same "
            "vocabulary, which proposes tokens. The text stays the same.",
            ...,
        ),
    ]
}
ENCODER: dict[str, Any] = {
    "task": Annotated[
        str | None,
        common.text(
            "TASK",
            "Task of an encoder whose file allows several: embed, sparse, tokens, classify, tag, answer or fill. "
            "Default: the task that the file states.",
            ...,
        ),
    ],
    "adapter": Annotated[
        str | None,
        common.text(
            "NAME", "Adapter in the model's file, such as retrieval.query of Jina Embeddings v3. Default: none.", ...
        ),
    ],
}
SERVER: dict[str, Any] = {
    **ENCODER,
    "dictionaries": Annotated[
        list[str] | None,
        common.text(
            "NAME=PATH",
            "SAEs or transcoders for the first MODEL, whose features requests may change: a file or folder of SAELens, "
            "Gemma Scope, circuit-tracer or sparsify, or a folder of them; may be repeated. Where the file does not "
            "state its hooks: NAME=PATH,reads=HOOK,writes=HOOK.",
            ...,
        ),
    ],
    "cache_memory": Annotated[
        float | None,
        common.number(
            "Maximum gigabytes of each model's prefix cache (keys and values of finished requests). Default: the size "
            "of the weights, at least 0.5, at most a sixteenth of the memory.",
            ...,
        ),
    ],
}
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
    """Refuse a model that cannot do any of ``tasks``; the message names the command for it.

    Raises:
        InvalidRequest: the model has another task.
    """
    inputs.check_task(*tasks, use=f"pellucid {COMMANDS[inputs.spec.task]}", load_as="give this model --task ")


def with_template(options: LoadOptions, file: str | None) -> LoadOptions:
    """``options`` with the chat template in ``file``, if a file is given.

    Raises:
        InvalidRequest: the file cannot be read, or is too long.
    """
    return options if file is None else replace(options, chat_template=template_of(file))


def template_of(file: str) -> str:
    """Read a chat template from a file.

    Raises:
        InvalidRequest: the file cannot be read, or is too long.
    """
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
