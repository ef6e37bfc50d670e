"""Options for loading a model, with their checks. ``pellucid.load``, the command line and replicas use them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from msgspec import Struct
from msgspec.structs import force_setattr

from pellucid.errors import InvalidRequest, brief
from pellucid.model.outputs import Task
from pellucid.util.checks import boolean, real, string, strings, whole

F = TypeVar("F", bound=Callable[..., Any])
MAX_CONTEXT = 1 << 31
MAX_CACHE_GB = 1e6


OTHER_NAMES: Mapping[str, str] = {
    name: said
    for said, names in {
        "the name is context": "n_ctx num_ctx ctx_size max_model_len max_seq_length max_length",
        "the name is threads": "n_threads num_thread num_threads n_threads_batch",
        "the name is kv_cache": "kv_cache_dtype cache_type_k cache_type_v type_k type_v",
        "the name is source, the first argument": "model model_path model_name repo_id pretrained_model_name_or_path",
        "the name is draft": "draft_model speculative_model assistant_model",
        "the name is adapter": "default_task",
        "the model runs on the CPU, with the cores of threads": "n_gpu_layers device device_map gpu_memory_utilization "
        "tensor_parallel_size num_gpu main_gpu",
        "the weights keep the types of the file; precise=True computes as with float32": "dtype torch_dtype "
        "quantization load_in_4bit load_in_8bit quantization_config",
        "attention and memory need no switch": "flash_attn attn_implementation use_mmap use_mlock n_batch "
        "enforce_eager enable_prefix_caching max_num_seqs low_cpu_mem_usage",
        "no code of a model's repository runs": "trust_remote_code",
        "log in with hf auth login, or set HF_TOKEN": "token use_auth_token",
        "llm.generate(prompt, seed=...) sets the seed": "seed random_seed",
        "llm.embed(texts, dimensions=...) cuts vectors": "truncate_dim",
        "merge the adapter into the model first": "lora_path enable_lora",
        "the chat template of the file is found by itself; chat_template replaces it": "chat_format",
        "an error says what is wrong; there is nothing to switch": "verbose",
    }.items()
    for name in names.split()
}
"""Names of options in transformers, vLLM, llama-cpp-python and others, and what an error says about them."""


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise InvalidRequest for the first of ``names``, which no option of loading has."""
    for name in names:
        from difflib import get_close_matches  # slow to import, and only this error needs it

        near = get_close_matches(name, LoadOptions.__struct_fields__, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "help(pellucid.load) lists the options"
        raise InvalidRequest(f"unknown option {brief(name)}: {OTHER_NAMES.get(name, hint)}")


ACTIVATIONS = (8, 16)
"""Bits of activations without ``precise``."""


class LoadOption(Struct, frozen=True):
    """The declaration of an option, for the command line and for ``help(pellucid.load)``.

    Attributes:
        help: what the option does, with other options as the command line names them (``--precise``).
        value: stands for the value on the command line: "N" is an integer, "NUMBER" a float, "" a flag.
        more: what a user of Python also needs to know.
    """

    help: str
    value: str = ""
    more: str = ""

    @property
    def described(self) -> str:
        """The description in Python, with the Python names of other options."""
        named = re.sub(r"--([a-z][a-z-]*)", lambda match: f"``{match[1].replace('-', '_')}``", self.help)
        return f"{named} {self.more}".strip()


class LoadOptions(Struct, frozen=True, kw_only=True):
    """Options for loading a model. The values can be sent to another process.

    ``LOAD_OPTIONS`` has the declarations of the fields. ``context_of`` checks the context, because its limit depends on
    the model.

    Raises:
        InvalidRequest: a value is out of range.
    """

    context: Annotated[
        int | None,
        LoadOption(
            "Maximum tokens of a prompt and its generated text together. Default: the context that the file states, "
            "or less if the free memory is too small for it.",
            "N",
            "At most ``ModelSpec.max_context``. A warning reports a context that the memory limits.",
        ),
    ] = None
    threads: Annotated[
        int | None,
        LoadOption(
            "Threads that run a step. Default: one for each physical core, within a container's limit.",
            "N",
            "At most ``MAX_THREADS``.",
        ),
    ] = None
    pin: Annotated[
        str | None,
        LoadOption(
            "cores: bind each thread to its own core (for one model); nodes: to the cores of a memory node; none: do "
            "not bind. Default: nodes on a machine with several sockets, otherwise none.",
            "cores|nodes|none",
            "With nodes, weights are near the threads that read them. The caller's threads are not bound.",
        ),
    ] = None
    precise: Annotated[
        bool,
        LoadOption(
            "Use 24-bit activations and float32 keys and values. The results are those of a float32 run with the "
            "file's weights. Slower for long texts.",
            more="Up to float32's own rounding. Doubles the time of prefill, and of decode after 4,096 tokens. Without "
            "it, the float weights of an encoder's blocks are quantised to 8 bits, and activations for quantised "
            "weights have 8 bits, except 16 bits in the value projections, the last feed-forward and the output "
            "projection of language models.",
        ),
    ] = False
    activations: Annotated[
        int | None,
        LoadOption(
            "Bits of activations: 8 (the default) or 16, which is closer to float32, and slower; --precise has 24.",
            "N",
            "16 bits in all products with quantised weights have a 10th to a 20th of the default's divergence from "
            "float32, for less time than ``precise`` (docs/performance.md).",
        ),
    ] = None
    kv_cache: Annotated[
        str | None,
        LoadOption(
            "Data type of keys and values: f16, bf16, q8_0 (half the memory), or f32 (no rounding). Default: f32 with "
            "--precise; otherwise bf16, or f16 for floating-point weights and keys with biases.",
            "TYPE",
            "bf16 is the fastest; f32 takes twice the memory.",
        ),
    ] = None
    cache_memory: Annotated[
        float | None,
        LoadOption(
            "Maximum gigabytes of each model's prefix cache (keys and values of finished requests). Default: the size "
            "of the weights, at least 0.5, at most a sixteenth of the memory.",
            "NUMBER",
        ),
    ] = None
    chat_template: Annotated[
        str | None, LoadOption("The Jinja source of a chat template, instead of the template of the file.", "FILE")
    ] = None
    draft: Annotated[
        str | Path | None,
        LoadOption(
            "Draft model for MODEL (if there are several, for the first MODEL): a smaller model with the same "
            "vocabulary, which proposes tokens. The text stays the same.",
            "MODEL",
        ),
    ] = None
    cap_context: Annotated[
        bool, LoadOption("Reduce a --context that is too long for the model, instead of raising an error.")
    ] = False
    pulls: Annotated[bool, LoadOption("Download a model that is not on this machine.")] = True
    task: Annotated[
        Task | None,
        LoadOption(
            "Task of an encoder whose file allows several: embed, sparse, tokens, classify, tag, answer or fill. "
            "Default: the task that the file states.",
            "TASK",
            '"embed" also for a language model.',
        ),
    ] = None
    adapter: Annotated[
        str | None,
        LoadOption(
            "Adapter in the model's file, such as retrieval.query of Jina Embeddings v3. Default: none.", "NAME"
        ),
    ] = None
    dictionaries: Annotated[
        Sequence[str] | None,
        LoadOption(
            "SAEs or transcoders for the first MODEL, whose features requests may change: a file or folder of SAELens, "
            "Gemma Scope, circuit-tracer or sparsify, or a folder of them; may be repeated. Where the file does not "
            "state its hooks: NAME=PATH,reads=HOOK,writes=HOOK.",
            "NAME=PATH",
            "``LLM.dictionaries`` has them.",
        ),
    ] = None

    def __post_init__(self) -> None:
        # These modules import NumPy, which would slow --help down.
        from pellucid.kernels.attention.kv_layout import KV_DTYPES
        from pellucid.kernels.core.loop import MAX_THREADS
        from pellucid.runtime.memory import PINS

        for name in ("precise", "cap_context", "pulls"):
            force_setattr(self, name, boolean(name, getattr(self, name)))
        if self.threads is not None:
            force_setattr(self, "threads", whole("threads", self.threads, 1, MAX_THREADS))
        for name, choices in (("pin", PINS), ("kv_cache", KV_DTYPES), ("task", get_args(Task))):
            if (value := getattr(self, name)) is not None and value not in choices:
                raise InvalidRequest(f"{name}={brief(value)}: must be one of {', '.join(choices)}")
        if self.activations is not None:
            if self.precise:
                raise InvalidRequest(
                    f"activations={brief(self.activations)} beside precise, which has 24 bits: leave one out"
                )
            if self.activations not in ACTIVATIONS or isinstance(self.activations, (bool, float)):
                raise InvalidRequest(f"activations={brief(self.activations)}: must be 8 or 16; precise has 24")
        if self.cache_memory is not None:
            force_setattr(self, "cache_memory", real("cache_memory", self.cache_memory, 0.0, MAX_CACHE_GB))
        if self.adapter is not None:
            string("adapter", self.adapter)
        if self.dictionaries is not None:
            strings("dictionaries", self.dictionaries)
        if self.chat_template is not None:
            string("chat_template", self.chat_template)

    def context_of(self, stated: int, max_context: int) -> int:
        """The context for a model: ``stated`` is the context of its file, ``max_context`` its maximum.

        Raises:
            InvalidRequest: ``context`` is not an integer from 1 to ``max_context``.
        """
        if self.context is None:
            return stated
        high = MAX_CONTEXT if self.cap_context else max_context
        return min(whole("context", self.context, 1, high), max_context)

    @property
    def activation_bits(self) -> int:
        """Bits of the activations that quantised weights are multiplied with."""
        from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS

        return MAX_ACTIVATION_BITS if self.precise else self.activations or min(ACTIVATIONS)

    @property
    def cache_bytes(self) -> int | None:
        """Maximum bytes of the prefix cache; None: the cache chooses."""
        return None if self.cache_memory is None else int(1e9 * self.cache_memory)


LOAD_OPTIONS: Mapping[str, LoadOption] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(LoadOptions, include_extras=True).items()
}
"""The declaration of each field of ``LoadOptions``."""


def describe_options(function: F) -> F:
    """Put the descriptions of all options into the docstring of a function, after its argument ``source``."""
    wrap = textwrap.TextWrapper(120, initial_indent=8 * " ", subsequent_indent=12 * " ").fill
    options = "\n".join(wrap(f"{name}: {one.described}") for name, one in LOAD_OPTIONS.items())
    before, progress, after = (function.__doc__ or "").partition("        receipt_key: ")
    function.__doc__ = f"{before}{options}\n{progress}{after}" if progress else before
    return function
