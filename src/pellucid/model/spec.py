"""What a model is: frozen dataclasses, made of parts. Nothing here computes; ``plan/`` turns a spec into work.

Dimensions are STYLE's alphabet: D model width, H heads, G key/value heads, K head width, F feed-forward width,
V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Pairing = Literal["interleaved", "half"]


@dataclass(frozen=True)
class Embedding:
    """Token embeddings (V, D), multiplied by ``scale``; ``types`` and a ``norm`` as BERT has them."""

    vocabulary: int
    width: int
    scale: float = 1.0
    types: int = 0
    norm: Norm | None = None


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies are stretched for contexts longer than the trained one.

    ``linear`` divides all by ``factor``. ``llama3`` divides the low frequencies by it, leaves the high ones and
    goes smoothly between (Llama Team 2024, as in transformers' ``_compute_llama3_parameters``).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    trained_context: int = 8192


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the base of the frequencies, how many of a head's values turn, and how they pair."""

    base: float
    dims: int
    pairing: Pairing
    scaling: RotaryScaling | None = None
    factors: tuple[float, ...] = ()
    """What each of the dims/2 frequencies is divided by, if the file brings its own."""


@dataclass(frozen=True)
class Learned:
    """A learned vector for each of ``count`` positions, added to the embedding."""

    count: int


@dataclass(frozen=True)
class Norm:
    """``rms`` or ``layer`` normalisation; ``layer`` has a bias."""

    kind: Literal["rms", "layer"]
    eps: float


@dataclass(frozen=True)
class Attention:
    """One block's attention."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    causal: bool = True
    window: int = 0
    """How many tokens back a token sees, itself included; 0: all."""
    rotary: Rotary | None = None
    qk_norm: Norm | None = None
    softcap: float = 0.0
    bias: bool = False
    output_bias: bool = False


@dataclass(frozen=True)
class FeedForward:
    """``gated``: down(f(gate x) * up x); else down(f(up x))."""

    width: int
    activation: Literal["silu", "gelu_tanh", "gelu", "relu"]
    gated: bool
    bias: bool = False


@dataclass(frozen=True)
class Block:
    """A transformer block.

    ``placement`` of the norms: "pre" before attention and feed-forward; "post" after each residual addition;
    "sandwich" before, and again on the output before it is added.
    """

    attention: Attention
    feedforward: FeedForward
    norm: Norm
    placement: Literal["pre", "post", "sandwich"]


@dataclass(frozen=True)
class Head:
    """Projection to the vocabulary; ``tied`` uses the embedding's matrix. ``softcap`` 0: none."""

    tied: bool
    softcap: float = 0.0


@dataclass(frozen=True)
class Pooling:
    """From a sequence's rows to one vector: their mean, perhaps scaled to length 1."""

    kind: Literal["mean"] = "mean"
    normalize: bool = True


@dataclass(frozen=True)
class ModelSpec:
    """A whole model. ``head`` for language models, ``pooling`` for sentence encoders."""

    family: str
    name: str
    context: int
    embedding: Embedding
    blocks: tuple[Block, ...]
    position: Learned | None = None
    final_norm: Norm | None = None
    head: Head | None = None
    pooling: Pooling | None = None

    @property
    def causal(self) -> bool:
        """Whether text can be generated with it."""
        return self.head is not None


@dataclass(frozen=True)
class Slot:
    """Where a slot's values come from: a tensor of the file, and what is added to every value of it.

    (Gemma's norms multiply by 1 + w; its GGUF files have the 1 already in w, its safetensors do not.)
    """

    tensor: str
    plus: float = 0.0


@dataclass(frozen=True)
class Model:
    """A spec and the tensors that fill its slots, by slot name ("blocks.3.attention.q.weight")."""

    spec: ModelSpec
    slots: Mapping[str, Slot] = field(repr=False)
