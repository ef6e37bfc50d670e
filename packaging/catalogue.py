"""The kernels and the targets that wheels contain.

A kernel without parameters is in the catalogue by itself. For each parameter of the others the domain is derived from
the registry that defines it (formats, key and value types, activations), so a new format is covered without a change
here. Only the widths of heads are listed: the widths of published models, rounded as the cache rounds them.

``tests/unit/test_packaging.py`` plans all published shapes and all families, and finds each of their kernels here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from pellucid.kernels.attention.kv_layout import KV_DTYPES, unit
from pellucid.kernels.core.definitions import Definition, KernelKey, definitions
from pellucid.kernels.core.isa import KNOWN, Target, Variant
from pellucid.kernels.ops import elementwise, pooling
from pellucid.kernels.text.rewrite import RULES
from pellucid.plan.builder import SMOOTHED
from pellucid.weights.pack import BF16_PAIRS, packer
from pellucid.weights.quant.format import formats

SYSTEMS = ("linux-x86_64", "linux-aarch64", "darwin-aarch64", "darwin-x86_64", "windows-x86_64")
"""The systems of wheels. They are the keys of ``hooks.PLATFORMS``, which needs Hatchling."""
ACTIVATION_BITS = (8, 16, 24)
HEAD_WIDTHS = (
    (32, 32),  # MiniLM
    (64, 64),  # GPT-2, Llama 3.2 1B, SmolLM2, Qwen 2.5 below 3B, gpt-oss
    (80, 80),  # Phi-2, StableLM 3B
    (96, 96),  # Phi-3 mini, GPT-NeoX 20B
    (112, 112),  # Falcon-H1
    (128, 128),  # Llama, Mistral, Qwen, Granite, GLM, OLMo
    (256, 256),  # Gemma, Qwen 3.5
    (512, 512),  # the global layers of Gemma 4
    (576, 512),  # DeepSeek's latent keys
)
"""Widths of keys and of values."""
DISENTANGLED_WIDTH = 64
"""The width of heads with disentangled attention, in all published models of DeBERTa."""
WIDE = 512
"""Heads of this width and wider are rare, and their kernels take a minute each to compile: only their usual types."""
_TYPES = {8: ("bf16", "f32", "f16", "q8_0"), 16: ("bf16", "f16"), 24: ("f32",)}
_WIDE_TYPES = {8: ("bf16", "f32"), 16: ("bf16",), 24: ("f32",)}
_SETS = {"x86_64": ("amx", "avx512vnni", "avxvnni", "avx2", "portable"), "aarch64": ("neon", "portable")}
_FOR_TESTS = {("amx", Variant()), ("avxvnni", Variant())}
"""Variants that are best on no processor, so that only tests use them."""


def targets(system: str) -> list[Target]:
    """The targets of a wheel for a system of ``SYSTEMS``."""
    name, machine = system.split("-")
    return [
        Target(isa, name, machine, variant)
        for isa in KNOWN
        if isa.name in _SETS[machine]
        for variant in isa.variants
        if (isa.name, variant) not in _FOR_TESTS
    ]


def kernels() -> list[KernelKey]:
    """All kernels of a wheel. Each target has the same."""
    return [key for definition in definitions().values() for key in _keys(definition)]


def _keys(definition: Definition) -> Iterator[KernelKey]:
    name = definition.name
    if name in _OWN:
        yield from _OWN[name]()
        return
    parameters = list(inspect.signature(definition.build).parameters)[1:]
    domains = [_domain(name, parameter) for parameter in parameters]
    for values in product(*domains):
        yield KernelKey(name, **dict(zip(parameters, values)))


def _domain(name: str, parameter: str) -> tuple[Any, ...]:
    layouts = [known.packed for known in formats().values()]
    match name, parameter:
        case _, "packed" if name.endswith("_int8"):
            return tuple(layout for layout in layouts if not layout.is_float)
        case _, "packed" if name.endswith("_bf16"):
            return (BF16_PAIRS.packed,)
        case _, "packed" if name.endswith("_float"):
            return tuple(layout for layout in layouts if layout.is_float)
        case _, "packed":
            return tuple(layouts)
        case _, "activation_bits":
            return ACTIVATION_BITS
        case _, "kv_dtype":
            return KV_DTYPES
        case "pool", "kind":
            return pooling.KINDS
        case "activation", "kind":
            return elementwise.KINDS
        case "convolve", "ahead":
            return (0, 1)  # the convolutions of LFM2 and of its encoders
        case "route", "kind":
            return ("softmax", "sigmoid")
        case "route", "group_best":
            return (1, 2)
        case "rotary", "pairing":
            return ("half", "interleaved")
        case "text.merge", "symbols":
            return ("bytes", "characters")
        case "text.rewrite", "rules":
            return RULES
        case _, "gathered" | "silu" | "delta" | "whole" | "everywhere" | "single":
            return (False, True)
    raise LookupError(f"packaging/catalogue.py states no domain for {parameter} of kernel {name}")


def _attention() -> Iterator[KernelKey]:
    for (head_dim, value_dim), bits in product(HEAD_WIDTHS, ACTIVATION_BITS):
        for kv_dtype in (_WIDE_TYPES if head_dim >= WIDE else _TYPES)[bits]:
            if not (head_dim % unit(kv_dtype) or value_dim % unit(kv_dtype)):
                widths = {"head_dim": head_dim, "value_dim": value_dim}
                yield KernelKey("attention", **widths, kv_dtype=kv_dtype, activation_bits=bits)


def _disentangled() -> Iterator[KernelKey]:
    for key in _attention():
        if key["head_dim"] == key["value_dim"] == DISENTANGLED_WIDTH:
            yield KernelKey("disentangled_attention", **dict(key.parameters))


def _of_width(name: str, parameter: str, place: int) -> Callable[[], Iterator[KernelKey]]:
    def keys() -> Iterator[KernelKey]:
        for width, kv_dtype in product(dict.fromkeys(pair[place] for pair in HEAD_WIDTHS), KV_DTYPES):
            if not width % unit(kv_dtype):
                yield KernelKey(name, **{parameter: width, "kv_dtype": kv_dtype})

    return keys


def _trace_disentangled() -> Iterator[KernelKey]:
    for kv_dtype in KV_DTYPES:
        yield KernelKey("trace_disentangled", head_dim=DISENTANGLED_WIDTH, kv_dtype=kv_dtype)


def _norms() -> Iterator[KernelKey]:
    for kind in ("rms", "layer"):
        for bits in ACTIVATION_BITS:
            yield KernelKey("norm", kind=kind, activation_bits=bits)
            yield KernelKey("norm", kind=kind, activation_bits=bits, **SMOOTHED)


def _quantizations() -> Iterator[KernelKey]:
    for bits in ACTIVATION_BITS:
        yield KernelKey("quantize", activation_bits=bits)
        yield KernelKey("quantize", activation_bits=bits, **SMOOTHED)


def _pack() -> Iterator[KernelKey]:
    yield from dict.fromkeys(packer(known) for known in formats().values())


_OWN: Mapping[str, Callable[[], Iterator[KernelKey]]] = {
    "attention": _attention,
    "disentangled_attention": _disentangled,
    "trace_disentangled": _trace_disentangled,
    "trace_pattern": _of_width("trace_pattern", "head_dim", 0),
    "trace_mix": _of_width("trace_mix", "value_dim", 1),
    "norm": _norms,
    "quantize": _quantizations,
    "pack_int": _pack,
    "pack_float": lambda: iter(()),  # with pack_int
}
