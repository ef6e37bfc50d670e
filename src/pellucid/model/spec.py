"""What a model is: frozen dataclasses, made of parts. Nothing here computes; ``plan/`` turns a spec into operations.

The file is over 400 lines because every part of a model is defined here, each in a few lines.

Dimensions: D model width, H heads, G key/value heads, K head width, F feed-forward width, E experts, V vocabulary,
L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from pellucid.errors import UnsupportedModel
from pellucid.model.positions import Learned, QueryScale, Rotary, Sinusoidal

Placement = Literal["pre", "post", "sandwich", "output", "parallel", "shared"]
Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2", "clamped_silu"]


class Embedding(Struct, frozen=True):
    """Token embeddings (V, D), multiplied by ``scale``. BERT also has token ``types`` and a ``norm``.

    If ``narrow`` is not 0, embeddings are (V, ``narrow``); a matrix widens them to D, and another one narrows the final
    vectors before the head (OPT-350M).
    """

    vocabulary: int
    width: int
    scale: float = 1.0
    types: int = 0
    norm: Norm | None = None
    narrow: int = 0


class Norm(Struct, frozen=True):
    """``rms`` or ``layer`` normalisation. ``layer`` has a bias, unless ``bias`` is False; ``weight`` is whether it has
    weights.
    """

    kind: Literal["rms", "layer"]
    eps: float
    weight: bool = True
    bias: bool = True

    @property
    def has_bias(self) -> bool:
        """Whether a bias is added."""
        return self.kind == "layer" and self.bias


class Latent(Struct, frozen=True):
    """Latent attention (DeepSeek-AI 2024, DeepSeek-V2): keys and values of all heads are made of one vector.

    ``rank`` is the width of that vector, ``query_rank`` that of the one that queries are made of (0: of the token
    itself); ``norm`` is the norm of both. The first ``plain_dim`` values of a head's query and key have no position;
    the others are rotated, and all heads share them in the key.
    """

    rank: int
    query_rank: int
    plain_dim: int
    norm: Norm


class Attention(Struct, frozen=True):
    """One block's attention: H heads of width K, G key/value heads."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    causal: bool = True
    window: int = 0
    """How many tokens a token sees, itself and those before it; 0: all."""
    chunked: bool = False
    """Whether windows do not slide: a token sees those of its own chunk of ``window`` tokens (Meta 2025, Llama 4)."""
    rotary: Rotary | None = None
    qk_norm: Norm | None = None
    """The norm of queries and keys, of each head's part."""
    qk_norm_whole: bool = False
    """Whether this norm is that of a token's queries of all heads together, and of its keys."""
    softcap: float = 0.0
    bias: bool = False
    output_bias: bool = False
    value_dim: int = 0
    """V, the width of a head's values; 0: as wide as its keys, K."""
    alibi: bool = False
    """Whether scores fall with the distance, with a slope for each head (Press et al. 2022)."""
    alibi_most: float = 8.0
    """The smallest slope is 2^-alibi_most (for a number of heads that is a power of two)."""
    alibi_scale: float = 1.0
    """A factor of the slopes."""
    alibi_rounded: bool = False
    """True: slopes, positions of keys and their products are rounded to bfloat16, as in Falcon's reference. The bias
    of a score then depends on the key's position instead of the distance.
    """
    clip: float = 0.0
    """If not 0, queries, keys and values are kept between -clip and clip, before norms and positions."""
    sinks: bool = False
    """Whether each head has a learned sink, a score that takes part of the attention weight (Xiao et al. 2023)."""
    cross: bool = False
    """Whether queries see the keys and values of the chunk's encoder instead of those of their own sequence."""
    v_norm: Norm | None = None
    """The norm of each head's values."""
    keys_as_values: bool = False
    """Whether the values are the projection of the keys, before these are normalised and rotated."""
    shared: int | None = None
    """The block whose keys and values are used, instead of keys and values of its own."""
    query_scale: QueryScale | None = None
    latent: Latent | None = None
    gate: bool = False
    """Whether what is attended is multiplied by the sigmoid of a projection of the token (Qwen Team 2025)."""
    output_scale: float = 1.0
    """A factor of the output."""

    def __post_init__(self) -> None:
        if not self.value_dim:
            force_setattr(self, "value_dim", self.head_dim)


class FeedForward(Struct, frozen=True):
    """``gated``: down(f(gate x) * up x); else down(f(up x)).

    ``limit`` and ``sharpness`` are those of ``clamped_silu``. ``gate_scale`` is a factor of f's argument,
    ``output_scale`` one of the output.
    """

    width: int
    activation: Activation
    gated: bool
    bias: bool = False
    limit: float = 0.0
    sharpness: float = 0.0
    gate_scale: float = 1.0
    output_scale: float = 1.0
    sparsity: float = 0.0
    """A part p of the gate's values that is cut off: f sees max(0, gate - cut), where ``cut`` is the p-quantile of a
    normal distribution with the mean and the deviation of the token's gate values; 0: f sees the gate
    (Gemma Team 2025, Gemma 3n).
    """


class Router(Struct, frozen=True):
    """The choice of a token's experts: the ``chosen`` with the highest scores of E ``experts``.

    A score is the softmax of the router's outputs over all experts, or the sigmoid of the expert's own. It is also the
    weight of the expert's result; ``normalize`` divides a token's weights by their sum, ``scale`` multiplies them.
    ``correction`` is whether each expert has a number that is added to its score for the choice alone. If there are
    several ``groups`` of experts, only the best ``kept`` groups take part; a group's rank is the sum of its
    ``group_best`` best scores (DeepSeek-AI 2024, DeepSeek-V3).
    """

    experts: int
    chosen: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = False
    scale: float = 1.0
    bias: bool = False
    correction: bool = False
    groups: int = 1
    kept: int = 1
    group_best: int = 1
    output_scale: float = 1.0
    """A factor of the router's outputs, before they become scores."""
    expert_scale: bool = False
    """Whether each expert has a number that multiplies its weight, after the weights are normalised."""


class Mixture(Struct, frozen=True):
    """A mixture of experts: the weighted sum of the feed-forwards that a token's router chooses (Shazeer et al. 2017).

    ``expert`` is the feed-forward of each expert. ``shared``, if there is one, is that of an expert that all tokens
    use; ``shared_gate`` is whether its result is multiplied by the sigmoid of a projection of the token.
    """

    router: Router
    expert: FeedForward
    shared: FeedForward | None = None
    shared_gate: bool = False
    input_weights: bool = False
    """Whether weights multiply what an expert's first matrices make of the token, instead of its result (Meta 2025,
    Llama 4).
    """
    norms: Norm | None = None
    """If there is one, router and experts read the residual stream, each through a norm of its own, and the sum of the
    experts' results and the shared expert's result each have a norm before they are added (Gemma Team 2026, Gemma 4).
    """


class DeltaNet(Struct, frozen=True):
    """Gated DeltaNet (Yang et al. 2024): a recurrent layer whose state is a matrix (K, V) for each of H heads.

    G heads of queries and keys have width ``key_dim`` K, the H ``heads`` of values width ``value_dim`` V. Queries, keys
    and values go through a convolution over the last ``taps`` tokens. H / G heads use the queries and keys of one head:
    consecutive ones or, if ``tiled``, every G-th (as llama.cpp orders them). ``norm`` is that of each head's output,
    which is then gated.
    """

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    taps: int
    norm: Norm
    tiled: bool = False


class Mamba(Struct, frozen=True):
    """Mamba-2 (Dao and Gu 2024): a recurrent layer whose state is a matrix (N, P) for each of H heads.

    The values x of the H ``heads`` have width ``head_dim`` P; N is ``state``. B and C are those of ``groups`` groups of
    heads. x, B and C go through a convolution over the last ``taps`` tokens. The output is gated and then, if there is
    a ``norm``, normalised, each group by itself; with ``norm_first`` in the other order. A token's step stays within
    ``limits``. ``multipliers`` are factors of the gate, x, B, C and the step, ``output_scale`` is one of the output
    (Falcon-H1).
    """

    heads: int
    head_dim: int
    groups: int
    state: int
    taps: int
    norm: Norm | None
    conv_bias: bool = True
    bias: bool = False
    output_bias: bool = False
    limits: tuple[float, float] = (0.0, math.inf)
    multipliers: tuple[float, ...] = (1.0,) * 5
    output_scale: float = 1.0
    norm_first: bool = False


class ShortConvolution(Struct, frozen=True):
    """A gated short convolution (Liquid AI 2025, LFM2): c * conv(b * x), over the last ``taps`` tokens."""

    taps: int
    bias: bool = False


Recurrent: TypeAlias = "DeltaNet | Mamba | ShortConvolution"


class Block(Struct, frozen=True):
    """A transformer block: attention or a recurrent layer, or both of the same input; then a feed-forward.

    Each of the three may be missing.

    ``placement`` of the norms: "pre" before attention and feed-forward; "post" after each residual addition;
    "sandwich" before, and again on the output before it is added; "output" only on the output before it is added.
    "parallel": attention and feed-forward read the same residual stream, each through its own norm; "shared": through
    the same one. Outputs are multiplied by ``residual_scale`` before they are added.
    """

    attention: Attention | None
    feedforward: FeedForward | Mixture | None
    norm: Norm
    placement: Placement
    residual_scale: float = 1.0
    recurrent: Recurrent | None = None
    scalar: bool = False
    """Whether the block's output is multiplied by a number that the file has for it."""
    laurel: int = 0
    """The rank of a learned residual beside attention's (Gemma Team 2025, Gemma 3n: LAuReL); 0: none."""


class PerLayer(Struct, frozen=True):
    """Embeddings for each layer (Gemma Team 2025, Gemma 3n): a token has a vector of ``width`` P in every block.

    They are the rows of a table (V, L P), times ``scale``, and a projection of the embedding, which is multiplied by
    ``projection_scale`` and normalised; both are added and multiplied by ``sum_scale``. At the end of its block, P
    numbers made of the residual stream go through ``activation``, are multiplied by the vector, projected and
    normalised, and added.
    """

    width: int
    scale: float
    projection_scale: float
    sum_scale: float
    activation: Activation
    vocabulary: int = 0
    """The table's rows, if it has fewer than the vocabulary: tokens from there on take row 0. 0: as many rows."""


class AltUp(Struct, frozen=True):
    """Alternating updates (Baykal et al. 2023): S ``streams`` of the residual, of which blocks read and change one.

    A block predicts all streams from all of them, works on the ``active`` one, and adds what it has changed to all.
    The factors of both are made of the active stream.
    """

    streams: int
    active: int = 0
    scaled: bool = True
    """Whether the active stream has a weight for each of its values before it meets embeddings of the layer."""


class Head(Struct, frozen=True):
    """Projection to the vocabulary. ``tied`` uses the embedding's matrix; ``softcap`` 0 means none.

    Logits are multiplied by ``scale`` before they are capped.
    """

    tied: bool
    softcap: float = 0.0
    bias: bool = False
    scale: float = 1.0


class Pooling(Struct, frozen=True):
    """Pooling of a sequence's rows into one vector: their mean, scaled to length 1 if ``normalize``.

    ``matryoshka`` lists the shorter lengths that the model is trained for (Kusupati et al. 2022,
    https://arxiv.org/abs/2205.13147): the first numbers of a vector. Empty: any length; None: the model states none.
    """

    kind: Literal["mean"] = "mean"
    normalize: bool = True
    matryoshka: tuple[int, ...] | None = None


class ModelSpec(Struct, frozen=True):
    """A whole model. Language models have a ``head``, sentence encoders ``pooling``."""

    family: str
    name: str
    context: int
    embedding: Embedding
    blocks: tuple[Block, ...]
    position: Learned | Sinusoidal | None = None
    per_layer: PerLayer | None = None
    altup: AltUp | None = None
    final_norm: Norm | None = None
    head: Head | None = None
    pooling: Pooling | None = None

    def change_attention(self, change: Callable[[int, Attention], Attention]) -> ModelSpec:
        """A copy in which each attention is what ``change`` makes of its block's number and of it."""
        return replace(
            self,
            blocks=tuple(
                replace(block, attention=change(layer, block.attention)) if block.attention else block
                for layer, block in enumerate(self.blocks)
            ),
        )

    def with_attention(self, **fields: Any) -> ModelSpec:
        """A copy with other fields of the attention of every block."""
        return self.change_attention(lambda _, attention: replace(attention, **fields))

    def change_feedforward(
        self, change: Callable[[FeedForward | Mixture], FeedForward | Mixture]
    ) -> ModelSpec:
        """A copy in which each feed-forward is what ``change`` makes of it."""
        return replace(
            self,
            blocks=tuple(
                replace(block, feedforward=change(block.feedforward)) if block.feedforward else block
                for block in self.blocks
            ),
        )

    def with_blocks(self, **fields: Any) -> ModelSpec:
        """A copy with other fields of every block."""
        return replace(self, blocks=tuple(replace(block, **fields) for block in self.blocks))

    @property
    def attentions(self) -> list[Attention]:
        """The attention of each block that has one."""
        return [block.attention for block in self.blocks if block.attention]

    @property
    def attention(self) -> Attention:
        """The attention of the first block that has one.

        Raises:
            UnsupportedModel: no block has attention.
        """
        if not self.attentions:
            raise UnsupportedModel(f"{self.name}: no layer has attention")
        return self.attentions[0]

    @property
    def longest(self) -> int:
        """The largest context that the model may be run with: the file's, or as far as its rotary scaling reaches."""
        scalings = (kind.rotary.scaling for kind in self.attentions if kind.rotary and kind.rotary.scaling)
        return max(self.context, *(scaling.reach for scaling in scalings), 0)

    @property
    def causal(self) -> bool:
        """Whether the model generates text."""
        return self.head is not None

    @property
    def output_width(self) -> int:
        """Columns of the output: V for a language model, D for an encoder."""
        return self.embedding.vocabulary if self.head else self.embedding.width

    def __repr__(self) -> str:
        embedding, sizes = self.embedding, []
        recurrent = sum(1 for block in self.blocks if block.recurrent)
        if recurrent:
            sizes.append(f"of which {recurrent} recurrent")
        sizes.append(f"D={embedding.width}")
        if self.attentions:
            attention = self.attention
            sizes.append(f"H={attention.heads} G={attention.kv_heads} K={attention.head_dim}")
        ff = next((block.feedforward for block in reversed(self.blocks) if block.feedforward), None)
        if isinstance(ff, Mixture):
            sizes.append(f"F={ff.expert.width} E={ff.router.experts} of which {ff.router.chosen}")
        elif ff:
            sizes.append(f"F={ff.width}")
        return (
            f"ModelSpec({self.family} {self.name!r}: L={len(self.blocks)} {' '.join(sizes)} V={embedding.vocabulary}, "
            f"context {self.context:,})"
        )
