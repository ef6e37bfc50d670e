"""Options for loading a model, with their checks. ``pellucid.load``, the command line and replicas use them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from msgspec import Struct
from msgspec.structs import force_setattr

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.model.outputs import Task
from pellucid.util.checks import boolean, real, string, strings, whole

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


class LoadOptions(Struct, frozen=True, kw_only=True):
    """Options for loading a model, as ``pellucid.load`` describes them. The values can be sent to another process.

    Attributes:
        context: tokens of prompt and answer together, 1 to ``ModelSpec.max_context``. None: the context that the file
            states, or that fits into the free memory. ``context_of`` checks the value, because the limit depends on the
            model.
        threads: threads of a step, 1 to ``MAX_THREADS``. None: one for each physical core.
        pin: a name in ``placement.PINS``. None: "nodes" on a machine with several memory nodes, otherwise
            "none".
        precise: 24-bit activations, and float32 keys and values.
        activations: bits of activations, a number in ``ACTIVATIONS``. None: 24 if ``precise``, otherwise 8.
        kv_cache: a name in ``kv_layout.KV_DTYPES``. None: the plan chooses.
        cache_memory: gigabytes of the prefix cache, 0 to 1,000,000. None: the cache chooses.
        chat_template: the Jinja source of a chat template. None: the template of the file.
        draft: the draft model, as ``source`` of ``pellucid.load``. None: no draft model.
        cap_context: reduce a ``context`` that is too long for the model, instead of raising an error.
        pulls: download a model that is not on this machine.
        task: the task of an encoder whose file allows several: a name in ``outputs.Task``. None: the task that the file
            states.
        adapter: the name of an adapter in the model's file. None: no adapter.
        dictionaries: SAEs and transcoders for edits of requests, as "NAME=PATH" or a path
            (``trace/dictionaries/dictionary.py``). None: no dictionaries.

    Raises:
        InvalidRequest: a value is out of range.
    """

    context: int | None = None
    threads: int | None = None
    pin: str | None = None
    precise: bool = False
    activations: int | None = None
    kv_cache: str | None = None
    cache_memory: float | None = None
    chat_template: str | None = None
    draft: str | Path | None = None
    cap_context: bool = False
    pulls: bool = True
    task: Task | None = None
    adapter: str | None = None
    dictionaries: Sequence[str] | None = None

    def __post_init__(self) -> None:
        # These modules import NumPy, which would slow --help down.
        from pellucid.kernels.attention.kv_layout import KV_DTYPES
        from pellucid.kernels.program.loop import MAX_THREADS
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
