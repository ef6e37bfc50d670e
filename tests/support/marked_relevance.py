"""Relevances in a model that scores options at marks, in float64 NumPy, without a backward pass.

Attention weights, scales of norms, gates and the ratios of activations are held fixed at the values of a first pass.
Then the model is linear in the vectors of the tokens. The relevance of a token is the score of a pass without biases
that reads only the vector of this token. The constant is the score of a pass that reads zeros, with biases. The tests
compare both with ``trace/lenses/relevance.py``, which goes backwards.

The definition of the model is in ``tests/oracles/marked_options_oracle.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from support.marked_options import COMMON, MODELS, weights

TOGETHER = 32
"""Tokens whose vectors are read together, each alone."""


class FixedModel:
    """A model with the factors of its first pass: over a prompt ``ids``, for a question of the type ``kind``."""

    def __init__(self, name: str, ids: Sequence[int], kind: int) -> None:
        self.config, self.kind = MODELS[name], kind
        self.w = {key: x.astype(np.float64) for key, x in weights(name).items()}
        self.width, self.heads = self.config["embedding_length"], self.config["attention.head_count"]
        self.blocks = self.config["block_count"]
        self.encoder = self.blocks - self.config["decision.block_count"]
        self.factors: dict[str, np.ndarray] = {}
        self.biased = True
        self.writes: dict[str, np.ndarray] = {}
        """The vectors (T, D) that each part adds to the residual stream in the first pass."""
        self.embedded = self.norm(self.w["token_embd.weight"][list(ids)], "token_embd_norm")
        self.scores = self.run(self.embedded)

    def fixed(self, name: str, value: Any) -> np.ndarray:
        """A factor: computed in the first pass, by ``value``, and the same in later passes."""
        if name not in self.factors:
            self.factors[name] = value()
        return self.factors[name]

    def bias(self, name: str) -> Any:
        return self.w.get(f"{name}.bias", 0.0) if self.biased else 0.0

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        eps = COMMON["attention.layer_norm_epsilon"]
        scale = self.fixed(name, lambda: 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + eps))
        return centred * scale * self.w[f"{name}.weight"] + self.bias(name)

    def dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.bias(name)

    def activated(self, x: np.ndarray, name: str, function: Any) -> np.ndarray:
        """f(x), as x times the fixed ratio f(x) / x."""
        return x * self.fixed(name, lambda: np.where(x == 0, 0.0, function(x) / np.where(x == 0, 1.0, x)))

    def attention(self, x: np.ndarray, layer: int) -> np.ndarray:
        block, head_dim = f"blk.{layer}", self.width // self.heads
        qkv = self.dense(x, f"{block}.attn_qkv").reshape(*x.shape[:-1], 3, self.heads, head_dim)
        q, k, v = (qkv[..., at, :, :].swapaxes(-2, -3) for at in range(3))
        mixed = self.fixed(f"{block}.pattern", lambda: self.pattern(q, k, layer)) @ v
        if f"{block}.heads" not in self.writes:
            columns = self.w[f"{block}.attn_output.weight"].reshape(self.width, self.heads, head_dim)
            self.writes[f"{block}.heads"] = np.einsum("htk,dhk->htd", mixed, columns)
        return self.dense(mixed.swapaxes(-2, -3).reshape(x.shape), f"{block}.attn_output")

    def pattern(self, q: np.ndarray, k: np.ndarray, layer: int) -> np.ndarray:
        """The attention weights (H, T, T)."""
        tokens, at = q.shape[1], np.arange(q.shape[1])
        visible = np.ones((tokens, tokens), bool)
        if layer < self.encoder:
            own = self.config.get("attention.sliding_window_pattern")
            local = bool(own[layer]) if own is not None else layer % 3 != 0
            base = COMMON["rope.freq_base"]
            if local:
                visible = np.abs(at[:, None] - at) <= self.config["attention.sliding_window"] // 2
                base = self.config.get("rope.freq_base_swa", base)
            half = q.shape[-1] // 2
            angles = at[:, None] * base ** (-np.arange(half) / half)
            turn = np.exp(1j * angles)
            q, k = (x[..., :half] + 1j * x[..., half:] for x in (q, k))
            q, k = q * turn, k * turn
        scores = (q @ k.conj().swapaxes(-1, -2)).real / math.sqrt(self.width // self.heads)
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def run(self, x: np.ndarray) -> np.ndarray:
        """The score of each token (..., T), of the vectors (..., T, D) before the first block."""
        silu = self.config.get("hidden_activation") == "silu"
        act = (lambda x: x / (1 + np.exp(-x))) if silu else gelu
        for layer in range(self.blocks):
            block = f"blk.{layer}"
            if layer == self.encoder:
                x = self.norm(x, "output_norm")
                x = x + (self.w["token_types.weight"][self.kind] if self.biased else 0.0)
            x = x + self.attention(self.norm(x, f"{block}.attn_norm") if layer else x, layer)
            up = self.dense(self.norm(x, f"{block}.ffn_norm"), f"{block}.ffn_up")
            if layer < self.encoder:
                gate, up = np.split(up, 2, -1)
                hidden = self.fixed(f"{block}.gate", lambda gate=gate: act(gate)) * up
            else:
                hidden = self.activated(up, f"{block}.relu", lambda x: np.maximum(x, 0))
            out = self.dense(hidden, f"{block}.ffn_down")
            self.writes.setdefault(f"{block}.feedforward", out)
            x = x + out
        return self.read(x)

    def read(self, x: np.ndarray) -> np.ndarray:
        hidden = self.activated(self.dense(self.norm(x, "cls.norm"), "cls"), "cls.gelu", gelu)
        return self.dense(hidden, "cls.output")[..., 0]

    def relevances(self, mark: int, against: int) -> tuple[np.ndarray, float]:
        """The relevance (T,) of each token for the difference of the scores at two positions, and the constant."""
        count, found, self.biased = len(self.embedded), list[np.ndarray](), False
        for first in range(0, count, TOGETHER):
            alone = np.zeros((min(TOGETHER, count - first), count, self.width))
            for row, token in enumerate(range(first, first + len(alone))):
                alone[row, token] = self.embedded[token]
            scores = self.run(alone)
            found.append(scores[:, mark] - scores[:, against])
        self.biased = True
        constant = self.run(np.zeros_like(self.embedded))
        return np.concatenate(found), float(constant[mark] - constant[against])

    def contribution(self, written: np.ndarray, layer: int, mark: int, against: int) -> float:
        """The contribution to the difference of the vectors ``written`` (T, D) by a part of the block ``layer``."""
        self.biased = False
        x = written if layer >= self.encoder else self.norm(written, "output_norm")
        scores, self.biased = self.read(x), True
        return float(scores[mark] - scores[against])


def gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))))
