"""The spec of a model: frozen structs, one for each part. ``plan/`` turns a spec into operations.

The parts after the last block are in ``outputs.py``. The file is over 420 lines because it defines every part of a
model, each in a few lines.

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
from pellucid.model.outputs import (
    Dense,
    Head,
    Labels,
    OutputActivation,
    PairPrompt,
    Pooling,
    Similarity,
    Task,
    UnitLength,
)
from pellucid.model.positions import Learned, QueryScale, RelativeBuckets, RelativePositions, Rotary, Sinusoidal

Placement = Literal["pre", "post", "sandwich", "output", "parallel", "shared"]
BUCKETS_CONTEXT = 1 << 17
"""Maximum context in tokens of a model whose positions are relative buckets."""
Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2", "clamped_silu"]


class Embedding(Struct, frozen=True):
    """Token embeddings (V, D), multiplied by ``scale``.

    ``types`` is the number of token types (BERT; 0: none). The vector of a token's type is added to its embedding.
    ``tasks`` is the number of tasks of the training (ERNIE; 0: none). The vector of the first task is added.
    ``norm`` normalizes the sum of all vectors of a token (BERT, BLOOM), or with ``norm_first`` the sum without the
    vector of the position. If ``narrow`` is not 0, embeddings are (V,
    ``narrow``). A matrix projects them to D, and a second matrix projects the final vectors back before the head
    (OPT-350M). ``narrow_sum``: the vectors of types and positions are narrow too; their sum is normalized and then
    projected, with a bias (ALBERT, ELECTRA), or with ``norm_last`` projected without a bias and then normalized
    (DeBERTa).
    """

    vocabulary: int
    width: int
    scale: float = 1.0
    types: int = 0
    tasks: int = 0
    norm: Norm | None = None
    narrow: int = 0
    norm_first: bool = False
    narrow_sum: bool = False
    norm_last: bool = False

    @property
    def sum_width(self) -> int:
        """Width of the sum of a token's vectors."""
        return self.narrow if self.narrow_sum else self.width

    @property
    def norm_width(self) -> int:
        """Width of the vectors that ``norm`` normalizes."""
        return self.width if self.norm_last else self.sum_width


class Norm(Struct, frozen=True):
    """RMS or layer normalization. ``weight``: the norm has weights. ``bias``: a layer normalization also has a bias."""

    kind: Literal["rms", "layer"]
    eps: float
    weight: bool = True
    bias: bool = True

    @property
    def has_bias(self) -> bool:
        """True if the norm adds a bias."""
        return self.kind == "layer" and self.bias


class Latent(Struct, frozen=True):
    """Latent attention (DeepSeek-AI 2024, DeepSeek-V2): keys and values of all heads are projections of one vector.

    ``rank`` is the width of this latent vector. ``query_rank`` is the width of the latent vector of queries (0: queries
    are projections of the token itself). ``norm`` is the norm of both latent vectors. The first ``plain_dim`` values of
    a head's query and key are not rotated. The other values are rotated. All heads share the rotated values of the key.
    """

    rank: int
    query_rank: int
    plain_dim: int
    norm: Norm


class Attention(Struct, frozen=True):
    """The attention of a block: H heads of width K, G key/value heads."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    causal: bool = True
    window: int = 0
    """Number of tokens that a token attends to: itself and the tokens before it; without ``causal`` also ``window`` - 1
    tokens after it. 0: no limit.
    """
    chunked: bool = False
    """True: the window does not slide. A token attends to its own chunk of ``window`` tokens (Meta 2025, Llama 4)."""
    rotary: Rotary | None = None
    qk_norm: Norm | None = None
    """The norm of queries and keys, separately for each head."""
    qk_norm_whole: bool = False
    """True: ``qk_norm`` normalizes the queries of all heads together, and the keys of all heads together."""
    softcap: float = 0.0
    bias: bool = False
    key_bias: bool = True
    """False: with ``bias``, only queries and values have a bias."""
    output_bias: bool = False
    value_dim: int = 0
    """The width V of a head's values. 0 stands for K, the width of its keys."""
    alibi: bool = False
    """True: scores decrease with the distance, with a slope for each head (Press et al. 2022)."""
    alibi_most: float = 8.0
    """The smallest slope is 2^-alibi_most, if the number of heads is a power of two."""
    alibi_scale: float = 1.0
    """A factor that multiplies the slopes."""
    alibi_rounded: bool = False
    """True: slopes, positions of keys and their products are rounded to bfloat16, as in Falcon's reference. The bias
    of a score then depends on the key's position instead of the distance.
    """
    relative: RelativeBuckets | None = None
    """Learned biases of scores by the distance of query and key."""
    disentangled: RelativePositions | None = None
    clip: float = 0.0
    """If not 0, queries, keys and values are clipped to -clip ... clip, before norms and positions."""
    sinks: bool = False
    """True: each head has a learned sink, a score that absorbs a part of the attention weight (Xiao et al. 2023)."""
    v_norm: Norm | None = None
    """The norm of the values of each head."""
    keys_as_values: bool = False
    """True: values are the projected keys, before keys are normalized and rotated."""
    shared: int | None = None
    """Number of the block whose keys and values this block uses; None: the block has its own."""
    query_scale: QueryScale | None = None
    latent: Latent | None = None
    gate: bool = False
    """True: the attention output is multiplied by the sigmoid of a projection of the token (Qwen Team 2025)."""
    output_scale: float = 1.0
    """A factor that multiplies the output."""
    smoothed: bool = False
    """True: the input is divided by factors before it is rounded, and the matrices are multiplied by these factors."""

    def __post_init__(self) -> None:
        if not self.value_dim:
            force_setattr(self, "value_dim", self.head_dim)


class FeedForward(Struct, frozen=True):
    """A feed-forward: down(f(gate x) * up x) if ``gated``, otherwise down(f(up x)).

    ``bias``: all matrices have a bias. ``output_bias``: ``down`` has a bias even if the other matrices have none.
    ``limit`` and ``sharpness`` are parameters of ``clamped_silu``. ``gate_scale`` multiplies the argument of f, and
    ``output_scale`` multiplies the output.
    """

    width: int
    activation: Activation
    gated: bool
    bias: bool = False
    output_bias: bool = False
    limit: float = 0.0
    sharpness: float = 0.0
    gate_scale: float = 1.0
    output_scale: float = 1.0
    sparsity: float = 0.0
    """The fraction p of gate values that is cut off: the argument of f is max(0, gate - cut), where ``cut`` is the
    p-quantile of a normal distribution with the mean and standard deviation of the token's gate values. 0: no cut
    (Gemma Team 2025, Gemma 3n).
    """
    smoothed: bool = False
    """As in ``Attention``."""


class Router(Struct, frozen=True):
    """The choice of a token's experts: the ``chosen`` experts with the highest scores among E ``experts``.

    Scores are the softmax of the router's outputs over all experts, or the sigmoid of each output. The score is also
    the weight of the expert's output. ``normalize`` divides the weights of a token by their sum, and ``scale``
    multiplies them. With ``correction``, each expert has a bias that is added to its score for the choice only. With
    several ``groups`` of experts, only experts of the best ``kept`` groups are chosen. Groups are ranked by the sum of
    their ``group_best`` highest scores (DeepSeek-AI 2024, DeepSeek-V3).
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
    """A factor that multiplies the router's outputs before the softmax or sigmoid."""
    expert_scale: bool = False
    """True: each expert has a factor that multiplies its weight after the normalization."""


class Mixture(Struct, frozen=True):
    """Mixture of experts (Shazeer et al. 2017): the weighted sum of the feed-forwards that a router chooses.

    ``expert`` is the feed-forward of each expert. ``shared`` is the feed-forward of an expert that all tokens use
    (None: no shared expert). ``shared_gate``: the sigmoid of a projection of the token multiplies the shared expert's
    output.
    """

    router: Router
    expert: FeedForward
    shared: FeedForward | None = None
    shared_gate: bool = False
    input_weights: bool = False
    """True: the weight of an expert multiplies the outputs of its first matrices, instead of its output (Meta 2025,
    Llama 4).
    """
    norms: Norm | None = None
    """If set, router and experts read the residual stream, each through its own norm. The sum of the experts' outputs
    and the output of the shared expert each have a norm before they are added (Gemma Team 2026, Gemma 4).
    """
    output_bias: bool = False
    """True: a bias is added to the sum of the experts' outputs (Nussbaum and Duderstadt 2025, Nomic Embed v2)."""


class DeltaNet(Struct, frozen=True):
    """Gated DeltaNet (Yang et al. 2024): a recurrent layer whose state is a matrix (K, V) for each of H heads.

    The G ``key_heads`` of queries and keys have width ``key_dim`` K. The H ``heads`` of values have width ``value_dim``
    V. Queries, keys and values go through a convolution over the last ``taps`` tokens. H / G value heads share a head
    of queries and keys. These value heads are consecutive or, if ``tiled``, every G-th value head (the order of
    llama.cpp). ``norm`` normalizes the output of each head before the gate.
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

    The values x of the H ``heads`` have width ``head_dim`` P. N is ``state``. Heads form ``groups`` groups, and the
    heads of a group share B and C. x, B and C go through a convolution over the last ``taps`` tokens. The output is
    gated and then normalized by ``norm``, separately for each group (None: not normalized). With ``norm_first`` the
    normalization precedes the gate. The step size of a token is clamped to ``limits``. ``multipliers`` multiply the
    gate, x, B, C and the step size. ``output_scale`` multiplies the output (Falcon-H1).
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
    """A gated short convolution (Liquid AI 2025, LFM2): c * conv(b * x), over the last ``taps`` tokens.

    ``centered``: over the ``taps`` tokens around a token (LFM2.5's encoders).
    """

    taps: int
    bias: bool = False
    centered: bool = False


Recurrent: TypeAlias = DeltaNet | Mamba | ShortConvolution


class Block(Struct, frozen=True):
    """A transformer block: attention, a recurrent layer, or both with the same input; then a feed-forward.

    Each of the three parts may be missing. In an encoder-decoder, ``cross`` attention to the source comes before the
    feed-forward. Its queries come from the tokens of the block, its keys and values from the output of the encoder.
    ``residual_scale`` multiplies the outputs of attention, recurrent layer and feed-forward before they are added to
    the residual stream. ``placement`` is the placement of the norms:

    - "pre": a norm of the input of attention and of the input of the feed-forward
    - "post": a norm of the residual stream after each addition
    - "sandwich": a norm of each input, and a norm of each output before it is added
    - "output": a norm of each output before it is added
    - "parallel": attention and feed-forward read the same residual stream, each through its own norm
    - "shared": attention and feed-forward read the same norm of the residual stream
    """

    attention: Attention | None
    feedforward: FeedForward | Mixture | None
    norm: Norm
    placement: Placement
    residual_scale: float = 1.0
    recurrent: Recurrent | None = None
    scalar: bool = False
    """True: the file has a scalar that multiplies the output of the block."""
    attention_norm: bool = True
    """False: attention reads the residual stream without a norm, although the feed-forward has a norm before it
    (ModernBERT's first block: the embedding is already normalized).
    """
    attention_post_norm: bool = False
    """True: with the placement "post", the attention output plus its input is normalized before it is added to its
    input (Jina AI 2024, jina-embeddings-v2-base-code).
    """
    laurel: int = 0
    """The rank of a learned residual beside attention (Gemma Team 2025, Gemma 3n: LAuReL); 0: none."""
    cross: Attention | None = None

    @property
    def is_parallel(self) -> bool:
        """True if attention and feed-forward read the same residual stream."""
        return self.placement in ("parallel", "shared")

    @property
    def norms_outputs(self) -> bool:
        """True if each output is normalized before it is added."""
        return self.placement in ("sandwich", "output")


class RelativeEmbedding(Struct, frozen=True):
    """The vectors of relative positions (``buckets``, D), the same in all blocks. ``norm`` normalizes them."""

    buckets: int
    norm: Norm | None = None


class TokenConvolution(Struct, frozen=True):
    """A convolution over ``taps`` neighbouring tokens of the embeddings, with all columns mixed (DeBERTa V2).

    f of its output is added to the output of the first block, and the sum is normalized by the norm of this block.
    """

    taps: int
    activation: OutputActivation


class PerLayer(Struct, frozen=True):
    """Per-layer embeddings (Gemma Team 2025, Gemma 3n): a token has a vector of ``width`` P for every block.

    The vectors are ``sum_scale`` times the sum of two terms: a row of a table (V, L P) times ``scale``, and a
    projection of the embedding, multiplied by ``projection_scale`` and normalized. At the end of a block, the residual
    stream is projected to P values. These values go through ``activation`` and are multiplied by the vector of the
    block. The product is projected, normalized and added to the residual stream.
    """

    width: int
    scale: float
    projection_scale: float
    sum_scale: float
    activation: Activation
    vocabulary: int = 0
    """Number of rows of the table if it is smaller than the vocabulary (0: equal). Larger token ids use row 0."""


class AltUp(Struct, frozen=True):
    """Alternating updates (Baykal et al. 2023): S residual ``streams``. Blocks compute only the ``active`` stream.

    Before a block, all streams are predicted from all streams. The block computes the active stream. The change of the
    active stream is then added to all streams. The coefficients of both steps are computed from the active stream.
    """

    streams: int
    active: int = 0
    scaled: bool = True
    """True: a weight vector multiplies the active stream before it is combined with the per-layer embeddings."""


class DecisionBlocks(Struct, frozen=True):
    """The last ``count`` blocks of an encoder that answers questions: they follow the norm of the encoder.

    Before them, ``norm`` normalizes the residual stream, and the vector of the type of the question is added. ``types``
    is the number of types (``decide/questions.py``). The output layers score each option at its mark.
    """

    count: int
    norm: Norm
    types: int


class ModelSpec(Struct, frozen=True):
    """The spec of a whole model. ``task`` is the meaning of its outputs, ``labels`` are the labels of a classifier.

    ``matryoshka`` lists the shorter lengths of sentence vectors for which the model is trained (Kusupati et al. 2022,
    https://arxiv.org/abs/2205.13147): the first values of a vector are a shorter vector. Empty: the model is trained
    for any length. None: the file states no shorter lengths. ``prompts`` are pairs of a name and a text that is put
    before a text for this purpose, such as "query"; the name "" is the prompt without a purpose. ``pair_prompt`` is the
    prompt of a reranker for a query and a document (None: they are a pair of texts). ``adapters`` are the names of the
    adapters in the file, and ``adapter`` is the name of the adapter that is merged into the weights ("": none).
    Vectors are cut to their first ``truncate_dim`` components, and sparse vectors to their ``max_active`` largest
    weights (0: not cut). ``similarity`` compares two sentence vectors.

    In an encoder-decoder, ``encoder`` is the spec of the encoder, and the other fields describe the decoder. The first
    tokens of the decoder are ``start``. The ``context`` limits the tokens of the source and, separately, the tokens of
    the decoder.
    """

    family: str
    name: str
    context: int
    embedding: Embedding
    blocks: tuple[Block, ...]
    position: Learned | Sinusoidal | None = None
    relative: RelativeEmbedding | None = None
    convolution: TokenConvolution | None = None
    per_layer: PerLayer | None = None
    altup: AltUp | None = None
    decision: DecisionBlocks | None = None
    final_norm: Norm | None = None
    pooling: Pooling | None = None
    output: tuple[Dense | Norm | UnitLength, ...] = ()
    head: Head | None = None
    task: Task = "generate"
    labels: Labels | None = None
    matryoshka: tuple[int, ...] | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    adapters: tuple[str, ...] = ()
    adapter: str = ""
    positions: int = 0
    """The maximum context of the body, if the file states a shorter context for texts; 0: it states none."""
    pair_prompt: PairPrompt | None = None
    truncate_dim: int = 0
    similarity: Similarity = "cosine"
    max_active: int = 0
    encoder: ModelSpec | None = None
    start: tuple[int, ...] = ()

    def change_attention(self, change: Callable[[int, Attention], Attention]) -> ModelSpec:
        """A copy with each attention replaced by ``change(layer, attention)``. ``layer`` is the number of the block."""
        return replace(
            self,
            blocks=tuple(
                replace(block, attention=change(layer, block.attention)) if block.attention else block
                for layer, block in enumerate(self.blocks)
            ),
        )

    def with_attention(self, **fields: Any) -> ModelSpec:
        """A copy with ``fields`` replaced in the attention of every block."""
        return self.change_attention(lambda _, attention: replace(attention, **fields))

    def change_dense(self, change: Callable[[int, FeedForward], FeedForward]) -> ModelSpec:
        """A copy with each feed-forward without experts replaced by ``change(layer, feedforward)``."""
        return self._change_feedforward(FeedForward, change)

    def change_mixture(self, change: Callable[[int, Mixture], Mixture]) -> ModelSpec:
        """A copy with each mixture of experts replaced by ``change(layer, mixture)``."""
        return self._change_feedforward(Mixture, change)

    def _change_feedforward(self, kind: type, change: Callable[[int, Any], Any]) -> ModelSpec:
        blocks = (
            replace(block, feedforward=change(layer, block.feedforward))
            if isinstance(block.feedforward, kind)
            else block
            for layer, block in enumerate(self.blocks)
        )
        return replace(self, blocks=tuple(blocks))

    def with_blocks(self, **fields: Any) -> ModelSpec:
        """A copy with ``fields`` replaced in every block."""
        return replace(self, blocks=tuple(replace(block, **fields) for block in self.blocks))

    @property
    def attentions(self) -> list[Attention]:
        """The attentions of all blocks that have attention."""
        return [block.attention for block in self.blocks if block.attention]

    @property
    def attention(self) -> Attention:
        """The attention of the first block that has attention.

        Raises:
            UnsupportedModel: no block has attention.
        """
        if not self.attentions:
            raise UnsupportedModel(f"{self.name}: no layer has attention")
        return self.attentions[0]

    @property
    def max_context(self) -> int:
        """The maximum context in tokens: the context in the file or the ``reach`` of the rotary scaling, if larger.

        If relative buckets are the only positions, the context has no end in the model, and the limit is
        `BUCKETS_CONTEXT`.
        """
        bucketed = [kind.relative is not None and not kind.rotary for kind in self.attentions]
        if self.position is None and bucketed and all(bucketed):
            return max(self.context, BUCKETS_CONTEXT)
        scalings = (kind.rotary.scaling for kind in self.attentions if kind.rotary and kind.rotary.scaling)
        return max(self.context, self.positions, *(scaling.reach for scaling in scalings))

    @property
    def unscaled_context(self) -> int:
        """The length in tokens of the longest text with unscaled rotary frequencies.

        0: all texts have the same frequencies, because the context is not longer, no scaling depends on a length, the
        layers have different lengths, or the tokens have types, which the steps use for this choice.
        """
        scalings = (kind.rotary.scaling for kind in self.attentions if kind.rotary and kind.rotary.scaling)
        lengths = {scaling.trained_context for scaling in scalings if scaling.follows_context}
        length = lengths.pop() if len(lengths) == 1 else 0
        return 0 if length >= self.context or self.embedding.types else length

    @property
    def rotary_contexts(self) -> tuple[int, ...]:
        """The contexts that rotary frequencies are computed for: of short texts, and of texts beyond this length."""
        return tuple(context for context in (self.unscaled_context, self.context) if context)

    @property
    def generates(self) -> bool:
        """True if the model generates text."""
        return self.task == "generate"

    @property
    def encodes(self) -> bool:
        """True if the outputs are vectors, labels or scores of whole texts or tokens, not of a next token."""
        return self.task not in ("generate", "decide")

    @property
    def coarse(self) -> bool:
        """True for an encoder that keeps its accuracy with weights of 8 bits.

        Its residual stream is normalized after each addition. In other models, a few columns of the residual stream are
        far larger than the others.
        """
        return self.encodes and all(block.placement == "post" for block in self.blocks)

    @property
    def in_one_step(self) -> bool:
        """True if all tokens of a sequence must run in one step, because a row depends on later tokens."""
        causal = all(kind.causal for kind in self.attentions)
        return not causal or (self.pooling is not None and self.pooling.kind != "last")

    @property
    def output_rows(self) -> Literal["outputs", "sequences"]:
        """The rows of the result: the output rows that a step asks for, or one row for each sequence."""
        return "outputs" if self.pooling is None or self.pooling.kind == "last" else "sequences"

    @property
    def output_width(self) -> int:
        """Number of output columns: V for a language model, D for a sentence encoder without output layers."""
        if self.head:
            return self.head.labels or self.embedding.vocabulary
        widths = [layer.width for layer in self.output if isinstance(layer, Dense)]
        return widths[-1] if widths else self.embedding.width

    def __repr__(self) -> str:
        embedding, sizes = self.embedding, []
        if self.encoder:
            sizes.append(f"after an encoder of {len(self.encoder.blocks)},")
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
