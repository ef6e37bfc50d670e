"""Reference implementation of a model spec in NumPy float64: one sequence, one pass, no cache, no fusion.

It does not round, except that ``round_kv`` may round keys and values as the cache does (for example to float16).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.ops import copies, recurrent
from pellucid.kernels.ops.mixture import route_reference
from pellucid.model.positions import Learned, RelativePositions, Rotary, Sinusoidal
from pellucid.model.shapes import ENCODER, expected_shapes
from pellucid.model.slot_reader import SlotReader
from pellucid.model.spec import AltUp, Attention, Block, DeltaNet, FeedForward, Latent, Mamba, Mixture, Norm, Recurrent
from pellucid.model.weight_map import Model
from pellucid.plan.position import alibi_slopes, inverse_frequencies
from pellucid.weights.checkpoint import Checkpoint

Array = NDArray[np.float64]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def as_float16(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float64)


def as_bfloat16(x: Array) -> Array:
    """Round to eight significant bits, ties to even."""
    parts, exponents = np.frexp(x)
    return np.ldexp(np.round(parts * 256), exponents - 8)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def rotate(x: Array, rotary: Rotary, context: int) -> Array:
    """Rotate (T, heads, K) by the position of each token."""
    angles = np.arange(len(x))[:, None] * np.array(inverse_frequencies(rotary, context))
    pairs = angles.shape[1]
    halves = (slice(0, pairs), slice(pairs, 2 * pairs))
    copies = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    first, second = halves if rotary.pairing == "half" else copies
    magnitude, out = rotary.scaling.magnitude if rotary.scaling else 1.0, x.copy()
    cos, sin = magnitude * np.cos(angles)[:, None], magnitude * np.sin(angles)[:, None]
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def activated(ff: FeedForward, up: Array, gate: Array | None) -> Array:
    """f(gate) * up, or f(up)."""
    if ff.activation == "clamped_silu":
        assert gate is not None
        gate = np.minimum(gate, ff.limit)
        return gate / (1 + np.exp(-ff.sharpness * gate)) * (np.clip(up, -ff.limit, ff.limit) + 1)
    f = ACTIVATIONS[ff.activation]
    return f(up) if gate is None else f(gate) * up


def as_large(x: Array, like: Array) -> Array:
    """x (T, D), scaled so that each row has the length of the row of ``like``. The divisor is at least sqrt(1e-5)."""
    mine, wanted = ((one * one).mean(-1, keepdims=True) for one in (x, like))
    return x * np.sqrt(wanted / np.maximum(mine, 1e-5))


def buckets(distances: Array, kind: Attention) -> NDArray[np.int64]:
    """The bucket of each distance (key - query), one by one, from the limits of the buckets."""
    relative = kind.relative
    assert relative
    count = relative.count if kind.causal else relative.count // 2
    exact, found = count // 2, np.zeros(distances.shape, np.int64)
    for at, distance in np.ndenumerate(distances):
        away = max(-distance, 0) if kind.causal else abs(distance)
        bucket = away
        if away >= exact:
            part = math.log(away / exact) / math.log(relative.max_distance / exact)
            bucket = min(exact + math.floor(part * (count - exact) + 1e-6), count - 1)
        found[at] = bucket + (count if distance > 0 and not kind.causal else 0)
    return found


class Reference:
    """Runs a model. ``rows`` returns the last hidden states (T, D), ``logits`` the logits (T, V).

    ``source`` has the tokens of an encoder-decoder's source.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Model,
        round_kv: Callable[[Array], Array] = lambda x: x,
        source: Sequence[int] = (),
    ) -> None:
        if model.spec.encoder:
            slots = {slot.removeprefix(ENCODER): one for slot, one in model.slots.items() if slot.startswith(ENCODER)}
            self.source = Reference(checkpoint, Model(model.spec.encoder, slots, "layers"), round_kv).rows(source)
        self.checkpoint, self.model, self.spec, self.round_kv = checkpoint, model, model.spec, round_kv
        self.cached: dict[str, list[Array]] = {}
        self.patterns: dict[str, Array] = {}
        """The attention pattern (H, T, T') of each block, by the name of its attention."""

    def weight(self, slot: str) -> Array:
        return SlotReader(self.checkpoint, self.model.sources(slot)).values().astype(np.float64)

    def norm(self, x: Array, kind: Norm, slot: str) -> Array:
        if kind.kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        scaled = x / np.sqrt((x * x).mean(-1, keepdims=True) + kind.eps)
        if kind.weight:
            scaled = scaled * self.weight(f"{slot}.weight")
        return scaled + self.weight(f"{slot}.bias") if kind.kind == "layer" and kind.bias else scaled

    def linear(self, x: Array, slot: str, bias: bool = False) -> Array:
        out = x @ self.weight(f"{slot}.weight").T
        return out + self.weight(f"{slot}.bias") if bias else out

    def attention(self, x: Array, kind: Attention, at: str) -> Array:
        tokens = len(x)
        if kind.latent:
            return self.latent(x, kind, kind.latent, at)
        most = kind.clip or np.inf
        q = self.positioned(np.clip(self.linear(x, f"{at}.q", kind.bias), -most, most), kind, f"{at}.q_norm")
        if kind.query_scale:
            parts = (np.arange(tokens) + kind.query_scale.offset) // kind.query_scale.length
            q = q * (1 + kind.query_scale.beta * np.log(1 + parts))[:, None, None]
        if kind.shared is None:
            raw = np.clip(self.linear(x, f"{at}.k", kind.bias and kind.key_bias), -most, most)
            v = raw if kind.keys_as_values else np.clip(self.linear(x, f"{at}.v", kind.bias), -most, most)
            v = v.reshape(tokens, -1, kind.value_dim)
            v = self.norm(v, kind.v_norm, f"{at}.v_norm") if kind.v_norm else v
            k = self.positioned(raw, kind, f"{at}.k_norm")
            self.cached[at] = [np.repeat(self.round_kv(part), kind.heads // kind.kv_heads, axis=1) for part in (k, v)]
        k, v = self.cached[at if kind.shared is None else f"blocks.{kind.shared}.attention"]
        scores = np.einsum("thk,shk->hts", q, k) * kind.scale
        if kind.softcap:
            scores = kind.softcap * np.tanh(scores / kind.softcap)
        back = np.arange(tokens)[:, None] - np.arange(tokens)
        if kind.disentangled:
            scores = scores + kind.scale * self.position_scores(q, k, back, kind, kind.disentangled, at)
        slopes = np.array(alibi_slopes(kind.heads, kind.alibi_most))[:, None, None]
        if kind.alibi and kind.alibi_rounded:
            products = as_bfloat16(as_bfloat16(slopes) * as_bfloat16(np.arange(tokens, dtype=float)))
            scores = scores + kind.alibi_scale * products
        elif kind.alibi:
            scores = scores - kind.alibi_scale * slopes * np.abs(back)
        if kind.relative:
            slot = f"{at}.relative.weight" if kind.relative.own else "relative.weight"
            table = self.weight(slot).reshape(kind.relative.count, kind.heads)
            scores = scores + table[buckets(-back, kind)].transpose(2, 0, 1)
        seen = (back >= 0) | (not kind.causal)
        if kind.window:
            ago = np.arange(tokens)[:, None] % kind.window  # distance to the beginning of the token's chunk
            seen &= back <= ago if kind.chunked else (back if kind.causal else np.abs(back)) < kind.window
        scores = np.where(seen, scores, -np.inf)
        sinks = self.weight(f"{at}.sinks.weight") if kind.sinks else np.full(kind.heads, -np.inf)
        top = np.maximum(scores.max(-1, keepdims=True), sinks[:, None, None])
        weights = np.exp(scores - top)
        weights /= weights.sum(-1, keepdims=True) + np.exp(sinks[:, None, None] - top)
        self.patterns[at] = weights
        attended = np.einsum("hts,shk->thk", weights, v).reshape(tokens, -1)
        if kind.gate:
            attended = attended * sigmoid(self.linear(x, f"{at}.gate", kind.bias))
        return kind.output_scale * self.linear(attended, f"{at}.output", kind.output_bias)

    def position_scores(
        self, q: Array, k: Array, back: Array, kind: Attention, relative: RelativePositions, at: str
    ) -> Array:
        """The products of disentangled attention beside q Kᵀ, (H, T, T'), for the distances ``back`` (T, T')."""
        vectors, total = self.weight("relative.weight"), np.zeros((kind.heads, *back.shape))
        assert self.spec.relative
        if self.spec.relative.norm:
            vectors = self.norm(vectors, self.spec.relative.norm, "relative.norm")
        bucket = np.vectorize(relative.bucket)(back)[None]
        own = not relative.shared
        if relative.keys:
            bias = relative.key_bias if own else kind.key_bias
            keys = self.linear(vectors, f"{at}.position_k" if own else f"{at}.k", bias)
            found = np.einsum("thk,rhk->htr", q, keys.reshape(len(vectors), kind.heads, -1))
            total += np.take_along_axis(found, bucket, 2)
        if relative.queries:
            queries = self.linear(vectors, f"{at}.position_q" if own else f"{at}.q", bias=True)
            found = np.einsum("rhk,shk->hrs", queries.reshape(len(vectors), kind.heads, -1), k)
            total += np.take_along_axis(found, bucket, 1)
        return total

    def cross(self, x: Array, kind: Attention, at: str) -> Array:
        """Attention of the tokens to all tokens of the source."""
        q = self.linear(x, f"{at}.q", kind.bias).reshape(len(x), kind.heads, -1)
        k, v = (
            self.linear(self.source, f"{at}.{n}", kind.bias).reshape(len(self.source), kind.kv_heads, -1) for n in "kv"
        )
        if kind.qk_norm:
            q, k = (self.norm(part, kind.qk_norm, f"{at}.{n}_norm") for part, n in ((q, "q"), (k, "k")))
        k, v = (np.repeat(self.round_kv(part), kind.heads // kind.kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("thk,shk->hts", q, k) * kind.scale
        if kind.softcap:
            scores = kind.softcap * np.tanh(scores / kind.softcap)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("hts,shk->thk", weights, v).reshape(len(x), -1)
        return kind.output_scale * self.linear(attended, f"{at}.output", kind.output_bias)

    def positioned(self, x: Array, kind: Attention, norm: str) -> Array:
        """Queries or keys: split into heads, normalized and rotated."""
        heads = x.reshape(len(x), -1, kind.head_dim)
        if kind.qk_norm and kind.qk_norm_whole:
            heads = self.norm(x, kind.qk_norm, norm).reshape(heads.shape)
        elif kind.qk_norm:
            heads = self.norm(heads, kind.qk_norm, norm)
        return rotate(heads, kind.rotary, self.spec.context) if kind.rotary else heads

    def latent(self, x: Array, kind: Attention, latent: Latent, at: str) -> Array:
        """Latent attention with explicit keys and values of each head. The plan uses the absorbed form instead."""
        tokens, source = len(x), x
        if latent.query_rank:
            source = self.norm(self.linear(x, f"{at}.q_down", kind.bias), latent.norm, f"{at}.q_down_norm")
        plain, turned = (self.linear(source, f"{at}.{n}").reshape(tokens, kind.heads, -1) for n in ("q", "q_rotary"))
        memory = self.norm(self.linear(x, f"{at}.latent", kind.bias), latent.norm, f"{at}.latent_norm")
        memory = self.round_kv(memory)
        shared = self.linear(x, f"{at}.k_rotary", kind.bias).reshape(tokens, 1, -1)
        assert kind.rotary
        turned, shared = (rotate(part, kind.rotary, self.spec.context) for part in (turned, shared))
        shared = np.repeat(self.round_kv(shared), kind.heads, axis=1)
        shapes = expected_shapes(self.spec)
        up = [self.weight(f"{at}.{n}.weight").reshape(shapes[f"{at}.{n}.weight"]) for n in ("k_up", "v_up")]
        keys, values = np.einsum("tr,hrk->thk", memory, up[0]), np.einsum("tr,hvr->thv", memory, up[1])
        q, k = np.concatenate([plain, turned], -1), np.concatenate([keys, shared], -1)
        scores = np.einsum("thk,shk->hts", q, k) * kind.scale
        back = np.arange(tokens)[:, None] - np.arange(tokens)
        scores = np.where(back >= 0, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("hts,shv->thv", weights, values).reshape(tokens, -1)
        return self.linear(attended, f"{at}.output", kind.output_bias)

    def recurrent(self, x: Array, kind: Recurrent, at: str) -> Array:
        if isinstance(kind, DeltaNet):
            return self.delta_net(x, kind, at)
        if isinstance(kind, Mamba):
            return self.mamba(x, kind, at)
        b, c, value = (self.linear(x, f"{at}.{part}", kind.bias) for part in ("b", "c", "x"))
        return self.linear(c * self.convolve(b * value, f"{at}.conv", kind.bias), f"{at}.output", kind.bias)

    def convolve(self, x: Array, slot: str, bias: bool, silu: bool = False) -> Array:
        weight = self.weight(f"{slot}.weight").reshape(x.shape[1], -1).T
        return recurrent.reference(x, weight, self.weight(f"{slot}.bias") if bias else 0.0, silu)

    def delta_net(self, x: Array, kind: DeltaNet, at: str) -> Array:
        tokens = len(x)
        q, k, v = (
            self.convolve(self.linear(x, f"{at}.{n}"), f"{at}.{n}_conv", False, silu=True).reshape(tokens, heads, -1)
            for n, heads in (("q", kind.key_heads), ("k", kind.key_heads), ("v", kind.heads))
        )
        q, k = (part / np.sqrt((part * part).sum(-1, keepdims=True) + 1e-6) for part in (q, k))
        step = self.linear(x, f"{at}.step")
        _, shrunk = recurrent.decay_reference(step, self.weight(f"{at}.rate.bias"), self.weight(f"{at}.rate.weight"))
        out = recurrent.scan_reference(
            q * kind.key_dim**-0.5, k, v, shrunk, sigmoid(self.linear(x, f"{at}.beta")), delta=True,
            neighbours=1 if kind.tiled else 0,
        )  # fmt: skip
        out = self.norm(out, kind.norm, f"{at}.head_norm").reshape(tokens, -1)
        return self.linear(out * ACTIVATIONS["silu"](self.linear(x, f"{at}.gate")), f"{at}.output")

    def mamba(self, x: Array, kind: Mamba, at: str) -> Array:
        tokens, parts = len(x), {}
        for part, factor in zip(("gate", "x", "b", "c", "step"), kind.multipliers):
            parts[part] = factor * self.linear(x, f"{at}.{part}", kind.bias)
        value, b, c = (
            self.convolve(parts[n], f"{at}.{n}_conv", kind.conv_bias, silu=True).reshape(tokens, heads, -1)
            for n, heads in (("x", kind.heads), ("b", kind.groups), ("c", kind.groups))
        )
        rate, bias = (self.weight(f"{at}.rate.{part}").reshape(-1) for part in ("weight", "bias"))
        steps, shrunk = recurrent.decay_reference(parts["step"], bias, rate, *kind.limits)
        out = recurrent.scan_reference(
            c, b, value, shrunk, steps, self.weight(f"{at}.skip.weight").reshape(-1), delta=False
        )
        gate = ACTIVATIONS["silu"](parts["gate"])
        out = out.reshape(tokens, -1) * (1 if kind.norm_first else gate)
        if kind.norm:
            groups = out.reshape(tokens, kind.groups, -1)
            scaled = groups / np.sqrt((groups * groups).mean(-1, keepdims=True) + kind.norm.eps)
            out = scaled.reshape(tokens, -1) * self.weight(f"{at}.output_norm.weight").reshape(-1)
        out = out * (gate if kind.norm_first else 1)
        return kind.output_scale * self.linear(out, f"{at}.output", kind.output_bias)

    def feedforward(self, x: Array, ff: FeedForward | Mixture, at: str, residual: Array | None = None) -> Array:
        if isinstance(ff, Mixture):
            return self.mixture(x, ff, at, residual)
        up = self.linear(x, f"{at}.up", ff.bias)
        gate = ff.gate_scale * self.linear(x, f"{at}.gate", ff.bias) if ff.gated else None
        if gate is not None and ff.sparsity:
            cut = gate.mean(-1) + gate.std(-1) * NormalDist().inv_cdf(ff.sparsity)
            gate = np.maximum(gate - cut[:, None], 0)
        hidden = activated(ff, up, gate)
        return ff.output_scale * self.linear(hidden, f"{at}.down", ff.bias or ff.output_bias)

    def mixture(self, x: Array, kind: Mixture, at: str, residual: Array | None) -> Array:
        """A mixture of experts, token by token and expert by expert. Its own norms read the residual stream."""
        router, expert = kind.router, kind.expert
        routed = self.norm(residual, kind.norms, f"{at}.router_norm") if kind.norms else x
        seen = self.norm(residual, kind.norms, f"{at}.experts_norm") if kind.norms else x
        ids, weights = route_reference(
            router.output_scale * self.linear(routed, f"{at}.router", router.bias),
            router.score,
            router.chosen,
            router.normalize,
            router.scale,
            self.weight(f"{at}.correction.bias") if router.correction else 0.0,
            router.groups,
            router.kept,
            router.group_best,
            self.weight(f"{at}.expert_scale.weight") if router.expert_scale else None,
        )

        def shaped(slot: str) -> Array:
            return self.weight(slot).reshape(expected_shapes(self.spec)[slot])

        def project(row: Array, part: str, which: int) -> Array:
            matrix = shaped(f"{at}.experts.{part}.weight")[which]
            return matrix @ row + (shaped(f"{at}.experts.{part}.bias")[which] if expert.bias else 0.0)

        out = np.zeros_like(x)
        for token, row in enumerate(seen):
            for which, weight in zip(ids[token], weights[token]):
                first, last = (weight, 1.0) if kind.input_weights else (1.0, weight)
                up = first * project(row, "up", which)
                gate = first * project(row, "gate", which) if expert.gated else None
                out[token] += last * project(activated(expert, up, gate), "down", which)
        if kind.output_bias:
            out += self.weight(f"{at}.experts_output.bias")
        if kind.norms:
            out = self.norm(out, kind.norms, f"{at}.experts_post_norm")
        if kind.shared:
            shared = self.feedforward(x, kind.shared, f"{at}.shared")
            if kind.norms:
                shared = self.norm(shared, kind.norms, f"{at}.shared_post_norm")
            gate = self.linear(x, f"{at}.shared_gate") if kind.shared_gate else None
            out += shared if gate is None else shared / (1 + np.exp(-gate))
        return out

    def sublayer(self, x: Array, kind: Block, at: str, inside: Callable[[Array], Array]) -> Array:
        of_attention = at.endswith("attention")
        first = kind.placement not in ("post", "output") and (kind.attention_norm or not of_attention)
        out = inside(self.norm(x, kind.norm, f"{at}.norm") if first else x)
        if kind.attention_post_norm and of_attention:
            out = self.norm(x + out, kind.norm, f"{at}.post_norm")
        if kind.placement in ("sandwich", "output"):
            out = self.norm(out, kind.norm, f"{at}.post_norm")
        x = x + kind.residual_scale * out
        return self.norm(x, kind.norm, f"{at}.norm") if kind.placement == "post" else x

    def mixed(self, x: Array, kind: Block, layer: int) -> Array:
        """Output of attention, of a recurrent layer, or their sum."""
        out, at = np.zeros_like(x), f"blocks.{layer}"
        if kind.attention:
            out = out + self.attention(x, kind.attention, f"{at}.attention")
        if kind.recurrent:
            out = out + self.recurrent(x, kind.recurrent, f"{at}.recurrent")
        return out

    def per_layer_embeddings(self, ids: Sequence[int], x: Array) -> Array:
        """A vector for each token and block, (T, L, P)."""
        kind, layers = self.spec.per_layer, len(self.spec.blocks)
        if not kind:
            return np.empty((len(ids), layers, 0))
        shape = (len(ids), layers, kind.width)
        projected = kind.projection_scale * self.linear(x, "per_layer.project").reshape(shape)
        projected = self.norm(projected, self.spec.blocks[0].norm, "per_layer.norm")
        rows = [0 if kind.vocabulary and token >= kind.vocabulary else token for token in ids]
        table = self.weight("per_layer.embed.weight")[rows].reshape(shape)
        return kind.sum_scale * (projected + kind.scale * table)

    def spread(self, x: Array, kind: AltUp) -> Array:
        """The residual streams (T, S, D) of embeddings (T, D)."""
        others = [self.linear(x, f"altup.{i}.project") for i in range(1, kind.streams)]
        return np.stack([x, *(as_large(one, x) for one in others)], axis=1)

    def coefficients(self, x: Array, kind: AltUp, layer: int, what: str) -> Array:
        at = f"blocks.{layer}.altup"
        routed = self.norm(x, self.spec.blocks[0].norm, f"{at}.router_norm") / x.shape[1]
        return self.linear(np.tanh(self.linear(routed, f"{at}.router")), f"{at}.{what}")

    def join(self, lanes: Array, kind: AltUp) -> Array:
        """Mean of the first stream and the projected other streams, (T, D)."""
        first = lanes[:, 0]
        others = [self.linear(lanes[:, i], f"altup.{i}.unembed") for i in range(1, kind.streams)]
        return np.mean([first, *(as_large(one, first) for one in others)], axis=0)

    def rows(self, ids: Sequence[int], types: Sequence[int] | None = None) -> Array:
        embedding = self.spec.embedding
        x = self.weight("embed.weight")[list(ids)] * embedding.scale
        if embedding.narrow and not embedding.narrow_sum:
            x = self.linear(x, "embed.widen")
        if embedding.types:
            x = x + self.weight("embed.types.weight")[types or [0] * len(ids)]
        if embedding.tasks:
            x = x + self.weight("embed.tasks.weight")[0]
        if embedding.norm and embedding.norm_first:
            x = self.norm(x, embedding.norm, "embed.norm")
        if isinstance(self.spec.position, Learned):
            x = x + self.weight("position.weight")[: len(ids)]
        if isinstance(self.spec.position, Sinusoidal):
            kind, pairs = self.spec.position, x.shape[1] // 2
            positions = np.arange(len(ids)) + kind.offset
            angles = positions[:, None] / kind.base ** (np.arange(pairs) / (pairs - kind.endpoint))
            x = x + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        if embedding.norm_last:
            x = self.linear(x, "embed.widen")
        if embedding.norm and not embedding.norm_first:
            x = self.norm(x, embedding.norm, "embed.norm")
        if embedding.narrow_sum and not embedding.norm_last:
            x = self.linear(x, "embed.widen", bias=True)
        if convolution := self.spec.convolution:
            joined = copies.neighbours_reference(x, [len(x)], convolution.taps)
            convolved = ACTIVATIONS[convolution.activation](self.linear(joined, "convolution", bias=True))
        own = self.per_layer_embeddings(ids, x)
        altup = self.spec.altup
        lanes = self.spread(x, altup) if altup else x[:, None]
        for i, kind in enumerate(self.spec.blocks):
            at, ff = f"blocks.{i}.attention", f"blocks.{i}.feedforward"
            if kind.placement in ("parallel", "shared"):
                first = self.norm(x, kind.norm, f"{at}.norm")
                second = first if kind.placement == "shared" else self.norm(x, kind.norm, f"{ff}.norm")
                out = self.attention(first, kind.attention, at) + self.feedforward(second, kind.feedforward, ff)
                x = x + kind.residual_scale * out
                continue
            if altup:
                coefs = self.coefficients(lanes[:, altup.active], altup, i, "predict")
                lanes = lanes + coefs.reshape(len(x), altup.streams, -1) @ lanes
                x = lanes[:, altup.active]
            mixer = at if kind.attention else f"blocks.{i}.recurrent"
            normed = self.norm(x, kind.norm, f"{mixer}.norm") if kind.laurel else x
            if kind.attention or kind.recurrent:
                x = self.sublayer(x, kind, mixer, lambda x, k=kind, i=i: self.mixed(x, k, i))
            if kind.laurel:
                low = self.linear(self.linear(normed, f"blocks.{i}.laurel.left"), f"blocks.{i}.laurel.right")
                x = (x + normed + self.norm(low, kind.norm, f"blocks.{i}.laurel.norm")) / np.sqrt(2)
            if kind.cross:
                crossing = partial(self.cross, kind=kind.cross, at=f"blocks.{i}.cross")
                x = self.sublayer(x, kind, f"blocks.{i}.cross", crossing)
            if kind.feedforward:
                inside = partial(self.feedforward, ff=kind.feedforward, at=ff, residual=x)
                x = self.sublayer(x, kind, ff, inside)
            if altup:
                coefs = self.coefficients(x, altup, i, "correct")
                lanes = lanes + (1 + coefs)[:, :, None] * (x - lanes[:, altup.active])[:, None]
                seen = lanes[:, altup.active]
                seen = seen * self.weight(f"blocks.{i}.altup.scale.weight") if altup.scaled else seen
            if self.spec.per_layer:
                at, seen = f"blocks.{i}.per_layer", seen if altup else x
                hidden = ACTIVATIONS[self.spec.per_layer.activation](self.linear(seen, f"{at}.gate")) * own[:, i]
                more = self.norm(self.linear(hidden, f"{at}.project"), kind.norm, f"{at}.norm")
                lanes[:, 1:] += more[:, None]
                x = x if altup else x + more
            if i == 0 and convolution:
                x = self.norm(x + convolved, kind.norm, "convolution.norm")
            if kind.scalar:
                x = x * self.weight(f"blocks.{i}.scalar.weight")
        x = self.join(lanes, altup) if altup else x
        return self.norm(x, self.spec.final_norm, "norm") if self.spec.final_norm else x

    def logits(self, ids: Sequence[int]) -> Array:
        head = self.spec.head
        assert head is not None
        rows = self.rows(ids)
        rows = self.linear(rows, "project.narrow") if self.spec.embedding.narrow else rows
        out = self.linear(rows, "embed" if head.tied else "project")
        out = head.scale * (out + self.weight("project.bias") if head.bias else out)
        return head.softcap * np.tanh(out / head.softcap) if head.softcap else out
