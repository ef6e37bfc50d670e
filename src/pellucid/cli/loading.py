"""The options of commands that load a model, and loading with progress bars.

A command takes ``loading: Loading`` (or ``DraftLoading``, ``ServerLoading``), which is a ``LoadOptions``: each entry of
the tables here is a field of it and the help text of its command line option.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pellucid.cli import common
from pellucid.cli.option_groups import OptionGroup
from pellucid.load_options import LoadOptions

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs
    from pellucid.llm import LLM

Precise = Annotated[
    bool,
    common.flag(
        "--precise",
        "24-bit activations, float32 keys and values: the results of a float32 run of the file's weights. Slower "
        "for long texts.",
    ),
]
SHARED: dict[str, Any] = {
    "threads": Annotated[
        int | None,
        common.count(
            "Threads that run a step. Default: one for each physical core, within a container's limit."
        ),
    ],
    "pin": Annotated[
        str | None,
        common.text(
            "cores|nodes|none",
            "Bind each thread to its own core (for one model), to the cores of a memory node, or not. Default: "
            "nodes on a machine with several sockets, otherwise none.",
        ),
    ],
    "context": Annotated[
        int | None,
        common.count(
            "Maximum tokens of prompt and answer together. Default: the length that the file states."
        ),
    ],
    "precise": Precise,
    "kv_cache": Annotated[
        str | None,
        common.text(
            "TYPE",
            "Data type of keys and values: f16, bf16, q8_0 (half the memory), or f32 (no rounding). Default: f32 "
            "with --precise; otherwise bf16, or f16 for floating-point weights and keys with biases.",
        ),
    ],
}
DRAFT: dict[str, Any] = {
    "draft": Annotated[
        str | None,
        common.text(
            "MODEL",
            "Draft model for MODEL (for the first one, if there are several): a smaller model with the same "
            "vocabulary. It proposes tokens; the text stays the same.",
        ),
    ],
}
SERVER: dict[str, Any] = {
    "cache_memory": Annotated[
        float | None,
        common.number(
            "Maximum gigabytes of each model's prefix cache (keys and values of ended requests). Default: the size of "
            "the weights, at least 0.5, at most a sixteenth of the memory."
        ),
    ],
}
Loading: TypeAlias = Annotated[LoadOptions, OptionGroup(SHARED)]
DraftLoading: TypeAlias = Annotated[LoadOptions, OptionGroup({**SHARED, **DRAFT})]
ServerLoading: TypeAlias = Annotated[LoadOptions, OptionGroup({**SHARED, **DRAFT, **SERVER})]


def load(model: str, options: LoadOptions, before: Callable[[Inputs], object] | None = None) -> LLM:
    """Load a model with progress bars. ``before`` refuses requests that the model cannot run, before kernels compile.

    Raises: as ``pellucid.load``.
    """
    from pellucid.loading import load_model

    with common.progress() as bars:
        return load_model(model, options, progress=bars, compiling=bars.compiling, before=before)
