"""Prompts and scores of the models in ``option_models.py``, by an independent implementation in NumPy float64.

This file implements the definitions of llama.cpp: src/models/lfm2.cpp, qwen35.cpp and clef.cpp, and the prompts of
tools/server/server-decision.cpp. It reads the weights that the models are written from, and imports no ``pellucid``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from support.option_models import CONTROL, FIRST, MODELS, weights

Array: TypeAlias = np.ndarray
KINDS = ("choice", "score", "noul")
erf = np.vectorize(math.erf)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def softmax(x: Array) -> Array:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def turned(x: Array, base: float, dims: int) -> Array:
    """Rotate the first ``dims`` values of each head (T, H, K) by the position of the token."""
    angles = np.arange(len(x))[:, None] * base ** (-np.arange(0, dims, 2) / dims)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second, rest = x[..., : dims // 2], x[..., dims // 2 : dims], x[..., dims:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def attend(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """Attention (n, H, K) to (m, G, K): (n, H K)."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("nhk,mhk->hnm", q, k) / math.sqrt(q.shape[-1])
    if causal:
        scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
    return np.einsum("hnm,mhk->nhk", softmax(scores), v).reshape(len(q), -1)


class Weights:
    """The weights of a model, and layers by the names of their tensors."""

    def __init__(self, kind: str, half: bool = False) -> None:
        self.config = MODELS[kind]
        self.w = {
            name: (x.astype(np.float16) if half and x.ndim == 2 else x).astype(np.float64)
            for name, x in weights(kind).items()
        }

    def dense(self, x: Array, name: str) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def rms(self, x: Array, name: str) -> Array:
        eps = self.config["attention.layer_norm_rms_epsilon"]
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.w[f"{name}.weight"]

    def norm(self, x: Array, name: str) -> Array:
        eps = self.config["attention.layer_norm_epsilon"]
        x = x - x.mean(-1, keepdims=True)
        scaled = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def gated(self, x: Array, at: str) -> Array:
        return self.dense(silu(self.dense(x, f"{at}.ffn_gate")) * self.dense(x, f"{at}.ffn_up"), f"{at}.ffn_down")


class Omni(Weights):
    def scores(self, ids: Sequence[int], kind: str) -> Array:
        """The score of each token for a type of question."""
        x = self.w["token_embd.weight"][list(ids)]
        for layer in range(3):
            at = f"blk.{layer}"
            here = self.rms(x, f"{at}.attn_norm")
            x = x + (self.attention(here, at) if layer == 1 else self.convolution(here, at))
            x = x + self.gated(self.rms(x, f"{at}.ffn_norm"), at)
        x = self.rms(x, "token_embd_norm") + self.w["token_types.weight"][KINDS.index(kind)]
        for layer in (3, 4):
            at = f"blk.{layer}"
            q, k, v = self.dense(self.norm(x, f"{at}.attn_norm"), f"{at}.attn_qkv").reshape(-1, 3, 4, 16).swapaxes(0, 1)
            x = x + self.dense(attend(q, k, v, False), f"{at}.attn_output")
            inner = np.maximum(self.dense(self.norm(x, f"{at}.ffn_norm"), f"{at}.ffn_up"), 0)
            x = x + self.dense(inner, f"{at}.ffn_down")
        return self.dense(gelu(self.dense(self.norm(x, "cls.norm"), "cls")), "cls.output")[:, 0]

    def attention(self, x: Array, at: str) -> Array:
        base = self.config["rope.freq_base"]
        q, k, v = (self.dense(x, f"{at}.attn_{part}").reshape(len(x), -1, 16) for part in "qkv")
        q, k = (turned(self.rms(y, f"{at}.attn_{part}_norm"), base, 16) for y, part in ((q, "q"), (k, "k")))
        return self.dense(attend(q, k, v, False), f"{at}.attn_output")

    def convolution(self, x: Array, at: str) -> Array:
        b, c, value = np.split(self.dense(x, f"{at}.shortconv.in_proj"), 3, -1)
        padded = np.pad(b * value, ((1, 1), (0, 0)))
        taps = self.w[f"{at}.shortconv.conv.weight"].T
        mixed = padded[:-2] * taps[0] + padded[1:-1] * taps[1] + padded[2:] * taps[2]
        return self.dense(c * mixed, f"{at}.shortconv.out_proj")


class Qwen(Weights):
    def rows(self, ids: Sequence[int]) -> Array:
        """The normalised vectors (T, D)."""
        x = self.w["token_embd.weight"][list(ids)]
        for layer in range(3):
            at = f"blk.{layer}"
            here = self.rms(x, f"{at}.attn_norm")
            x = x + (self.attention(here, at) if layer == 2 else self.delta(here, at))
            x = x + self.gated(self.rms(x, f"{at}.post_attention_norm"), at)
        return self.rms(x, "output_norm")

    def attention(self, x: Array, at: str) -> Array:
        q, gate = np.split(self.dense(x, f"{at}.attn_q").reshape(len(x), 2, 64), 2, -1)
        k, v = (self.dense(x, f"{at}.attn_{part}").reshape(len(x), 1, 32) for part in "kv")
        q, k = (turned(self.rms(y, f"{at}.attn_{part}_norm"), 10_000.0, 16) for y, part in ((q, "q"), (k, "k")))
        mixed = attend(q, k, v, True) * sigmoid(gate.reshape(len(x), -1))
        return self.dense(mixed, f"{at}.attn_output")

    def delta(self, x: Array, at: str) -> Array:
        """A gated DeltaNet, one token after the other. Value head h reads key head h % 2."""
        tokens = len(x)
        padded = np.pad(self.dense(x, f"{at}.attn_qkv"), ((3, 0), (0, 0)))
        taps = self.w[f"{at}.ssm_conv1d.weight"].T
        mixed = silu(sum(padded[tap : tap + tokens] * taps[tap] for tap in range(4)))
        q, k = (mixed[:, start : start + 16].reshape(tokens, 2, 8) for start in (0, 16))
        q, k = (y / np.sqrt((y * y).sum(-1, keepdims=True) + 1e-6) for y in (q, k))
        v = mixed[:, 32:].reshape(tokens, 4, 8)
        beta = sigmoid(self.dense(x, f"{at}.ssm_beta"))
        step = self.dense(x, f"{at}.ssm_alpha") + self.w[f"{at}.ssm_dt.bias"]
        decay = np.exp(np.log1p(np.exp(step)) * self.w[f"{at}.ssm_a"])
        out, states = np.empty((tokens, 4, 8)), np.zeros((4, 8, 8))
        for t in range(tokens):
            for head in range(4):
                key, query = k[t, head % 2], q[t, head % 2] / math.sqrt(8)
                states[head] *= decay[t, head]
                states[head] += np.outer(key, (v[t, head] - key @ states[head]) * beta[t, head])
                out[t, head] = query @ states[head]
        gate = silu(self.dense(x, f"{at}.attn_gate").reshape(tokens, 4, 8))
        return self.dense((self.rms(out, f"{at}.ssm_norm") * gate).reshape(tokens, -1), f"{at}.ssm_out")


class Kev(Qwen):
    def scores(self, ids: Sequence[int], ends: Sequence[int]) -> Array:
        """The scores of the options that end at ``ends``."""
        rows = self.dense(self.rows(ids), "cls.output")
        return rows[list(ends), 24:] @ rows[-1, :24] / math.sqrt(24)


class Clef(Qwen):
    def scores(self, ids: Sequence[int], questions: Sequence[Mapping[str, Any]]) -> list[Array]:
        """The scores of the options of each question {"type", "span", "options": [span]}."""
        hidden = self.norm(self.rows(ids), "decision.hidden_norm")
        memory, end = self.project(hidden, "memory"), hidden[-1]
        asked = np.stack([hidden[range(*one["span"])].mean(0) for one in questions])
        found, vectors = [], []
        for mean, one in zip(asked, questions):
            context = np.stack([hidden[range(*span)].mean(0) for span in one["options"]])
            lexical = np.stack([self.w["output.weight"][ids[slice(*span)]].mean(0) for span in one["options"]])
            options = self.project(context, "option_context") + self.project(lexical, "option_lexical")
            options = options + self.project(mean, "option_question")
            for number in (0, 1):
                at = f"dec.blk.{number}"
                queries, seen = (
                    self.norm(options, f"{at}.cross_attn_norm"),
                    self.norm(memory, f"{at}.cross_attn_norm_kv"),
                )
                options = options + self.attended(queries, seen, f"{at}.cross_attn")
                options = options + self.feedforward(options, at)
            field = self.project(mean, "question")
            summary = softmax(options @ field / math.sqrt(32)) @ options
            field = field + self.norm(summary, "decision.option_summary_norm") + self.project(end, "global")
            vectors.append(field + self.w["token_types.weight"][("noul", "choice", "score").index(one["type"])])
            found.append((options, lexical))
        fields = np.stack(vectors)
        for number in (2, 3):
            at = f"dec.blk.{number}"
            rows = self.norm(fields, f"{at}.attn_norm")
            fields = fields + self.attended(rows, rows, f"{at}.attn")
            fields = fields + self.attended(self.norm(fields, f"{at}.cross_attn_norm"), memory, f"{at}.cross_attn")
            fields = fields + self.feedforward(fields, at)
        fields = self.norm(fields, "decision.field_norm")
        return [self.compared(field, *own, mean + end) for field, own, mean in zip(fields, found, asked)]

    def compared(self, field: Array, options: Array, lexical: Array, anchor: Array) -> Array:
        def cosine(a: Array, b: Array) -> Array:
            return a @ b / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b))

        options = self.norm(options, "decision.option_norm")
        both = np.broadcast_to(field, options.shape)
        features = np.concatenate([both, options, both * options, np.abs(both - options)], -1)
        residual = self.dense(gelu(self.dense(features, "decision.scorer")), "decision.scorer_out")[:, 0]
        scales = self.w["decision.scales"]
        joint = scales[1] * cosine(options, field) + residual
        return scales[0] * cosine(lexical, anchor) + scales[2] * joint

    def project(self, x: Array, name: str) -> Array:
        return x @ self.w[f"decision.proj_{name}.weight"].T

    def attended(self, queries: Array, rows: Array, at: str) -> Array:
        q = self.dense(queries, f"{at}_q").reshape(len(queries), 4, 8)
        k, v = (self.dense(rows, f"{at}_{part}").reshape(len(rows), 4, 8) for part in "kv")
        return self.dense(attend(q, k, v, False), f"{at}_o")

    def feedforward(self, x: Array, at: str) -> Array:
        return self.dense(gelu(self.dense(self.norm(x, f"{at}.ffn_norm"), f"{at}.ffn_up")), f"{at}.ffn_down")


def options_of(question: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    """The options (key, description) in the order of the scores."""
    criteria = question.get("criteria")
    if question["type"] == "choice":
        return sorted(criteria.items()) if kind == "clef" else list(criteria.items())
    if question["type"] == "score":
        return [(str(at), one) for at, one in enumerate(criteria)]
    both = [(key, (criteria or {}).get(key)) for key in ("false", "true")]
    return both[::-1] if kind == "clef" else both


def encoded(text: str, kind: str) -> list[int]:
    """Tokens of a text of the template: control tokens, and bytes."""
    names = {name: FIRST + at for at, name in enumerate(CONTROL[kind])}
    found = list[int]()
    for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
        found += [names[part]] if part in names else part.encode()
    return found


def escaped(value: Any) -> Any:
    """Names between <| and |> are not control tokens, in texts and in keys."""
    if isinstance(value, str):
        return re.sub(r"<\|([A-Za-z0-9_]+)\|>", r"<¦\1¦>", value)
    if isinstance(value, list):
        return [escaped(one) for one in value]
    return {escaped(key): escaped(one) for key, one in value.items()} if isinstance(value, dict) else value


def exchanged(value: Any, old: str, new: str) -> Any:
    """``value`` with ``new`` in place of ``old`` in its texts, but not in keys."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list):
        return [exchanged(one, old, new) for one in value]
    return {key: exchanged(one, old, new) for key, one in value.items()} if isinstance(value, dict) else value


def plain(value: Any, compact: bool = False) -> str:
    """A text, or JSON."""
    separators = (",", ":") if compact else None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=separators)


def omni_prompt(state: Any, question: Mapping[str, Any], most: int = 16384) -> tuple[list[int], list[int]]:
    """The tokens, and the positions of the marks."""

    def clean(value: Any) -> Any:
        return exchanged(escaped(value), "<<d1omni:", "<<d1omni ")

    options = options_of(question, "omni")
    count = len(options)
    budget = max(96, min(24 * count + 32, most // 2))
    tail = encoded(f"<|reserved_8|>{plain(clean(question['instructions']))}", "omni")[:budget]
    for key, about in options:
        described = f": {plain(clean(about))}" if about else ""
        tail += encoded("<|reserved_9|><|mask|>", "omni")
        tail += list(f" {clean(key)}{described}".encode())[: max(2, (budget - 3 * count) // count)]
        tail += encoded("<|reserved_10|>", "omni")
    tail += encoded("<|reserved_11|>", "omni")
    head = encoded("<|startoftext|><|reserved_7|>", "omni")
    ids = [*head, *plain(clean(state)).encode()[: most - len(head) - len(tail)], *tail]
    return ids, [at for at, token in enumerate(ids) if token == FIRST + 1]


def lines(value: Any, level: int = 0) -> str:
    """A value as kev reads it."""
    pad = " " * (2 * level)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return str(value)
    found = []
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        nested = isinstance(one, (dict, list))
        if isinstance(value, list):
            found.append(pad + "- " + lines(one, level + 1).lstrip(" \t\n\r"))
        else:
            found.append(pad + key + (":\n" if nested else ": ") + lines(one, level + 1 if nested else 0))
    return "\n".join(found)


def kev_prompt(state: Any, question: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """The tokens, and the positions of the ends of the options."""
    ids = encoded("<|fim_prefix|>", "kev") + list(escaped(lines(state)).encode())
    ids += encoded("<|fim_middle|>", "kev") + list(escaped(lines(question["instructions"])).encode())
    ends = []
    for key, about in options_of(question, "kev"):
        name = {"false": "no", "true": "yes"}[key] if question["type"] == "noul" else escaped(key)
        described = escaped(lines(about)) if about else ""
        text = described if question["type"] == "score" else f"{name}: {described}" if described else name
        ids += [*encoded("<|box_start|>", "kev"), *text.encode(), *encoded("<|box_end|>", "kev")]
        ends.append(len(ids) - 1)
    return ids + encoded("<|fim_suffix|>", "kev"), ends


def sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(one) for one in value] if isinstance(value, list) else value


def clef_prompt(state: Any, questions: Mapping[str, Any]) -> tuple[list[int], list[dict[str, Any]]]:
    """The tokens, and the spans of the questions."""

    def clean(value: Any) -> Any:
        return exchanged(sorted_keys(value), "<<clef:", "<<clef ")

    ids, found = encoded("<|im_start|>STATE ", "clef"), []
    ids += plain(clean(state), True).encode()

    def add(text: str) -> tuple[int, int]:
        start = len(ids)
        ids.extend(text.encode())
        return start, len(ids)

    for number, (id, question) in enumerate(questions.items(), 1):
        add(f"FIELD {number} {clean(id)} {question['type']}: ")
        own: dict[str, Any] = {"type": question["type"], "options": []}
        own["span"] = add(plain(clean(question["instructions"]), True))
        for at, (key, about) in enumerate(options_of(question, "clef"), 1):
            add(f"OPTION {at}: ")
            described = {} if about is None else {"description": clean(about)}
            own["options"].append(add(plain({**described, "option_id": clean(key)}, True)))
            add(";")
        found.append(own)
    ids += encoded("<|im_end|>DECISIONS:", "clef")
    return ids, found
