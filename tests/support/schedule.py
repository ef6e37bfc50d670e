"""Runs a model on sequences in arbitrary chunks and batches. The logits must equal a run of each sequence alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid import pipeline
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.weights.gguf_values import TENSOR_TYPES
from pellucid.weights.quant.format import formats
from support.blocks import quantised, random_blocks
from support.model_files import gguf
from support.tiny import model_runner, opened

LENGTHS = (150, 100, 70, 64, 33, 20, 9, 1, 560, *[16] * 8)
"""Lengths of the sequences in tokens. A page holds 64 tokens, a piece of attention 512."""


class Model:
    """A model on 1 to 4 threads, and the expected logits: each sequence alone, in one step, on one thread."""

    def __init__(
        self,
        path: Path,
        activation_bits: int = 24,
        threads: tuple[int, ...] = (1, 2, 3, 4),
        kv_cache: str | None = None,
    ) -> None:
        self._stack = ExitStack()
        room = {"context": 64 * 32, "tokens": 600, "outputs": 600, "sequences": len(LENGTHS)}
        with opened(path) as (checkpoint, model):
            # The sequences exceed the contexts of the tiny models. Only ALiBi's tables depend on the context.
            spec = replace(model.spec, context=room["context"]) if not model.spec.position else model.spec
            plan = pipeline.build_plan(spec, layouts(checkpoint, model), activation_bits, kv_cache)
        self.runners = {n: self._stack.enter_context(model_runner(path, plan, threads=n, **room)) for n in threads}
        V = model.spec.embedding.vocabulary
        rng = np.random.default_rng(7)
        self.tokens = [rng.integers(0, V, n).tolist() for n in LENGTHS]
        self.alone: dict[int, NDArray[np.float32]] = {}

    def truth(self, which: int) -> NDArray[np.float32]:
        """Expected logits of every token of a sequence, (T, V)."""
        if which not in self.alone:
            net, sequence, tokens = self.runners[1], BlockTable(), self.tokens[which]
            self.alone[which] = net.forward([Chunk(sequence, tokens, len(tokens))])
            net.cache.truncate(sequence, 0)
            assert np.isfinite(self.alone[which]).all()
            assert self.alone[which].std() > 0
        return self.alone[which]

    def close(self) -> None:
        self._stack.close()


class Play:
    """Sequences that grow and shrink in one model runner. Every step checks its logits."""

    def __init__(self, model: Model, threads: int = 1) -> None:
        self.model, self.net = model, model.runners[threads]
        self.sequences = [BlockTable() for _ in LENGTHS]

    def __enter__(self) -> Play:
        return self

    def __exit__(self, *_: object) -> None:
        for which in range(len(LENGTHS)):
            self.cut(which, 0)
        self.net.cache.clear_prefixes()
        assert self.net.cache.kv.free_pages == self.net.cache.kv.pages

    def step(self, counts: Mapping[int, int]) -> None:
        """Run one step: each sequence grows by its count of tokens, at most to its full length."""
        chunks, wanted = [], []
        for which, count in counts.items():
            sequence, tokens = self.sequences[which], self.model.tokens[which]
            more = tokens[sequence.length : sequence.length + count]
            if more:
                wanted.append(self.model.truth(which)[sequence.length : sequence.length + len(more)])
                chunks.append(Chunk(sequence, more, len(more)))
        if chunks:
            got, want = self.net.forward(chunks), np.concatenate(wanted)
            different = np.flatnonzero((got != want).any(1))
            assert got.tobytes() == want.tobytes(), f"rows {different} of {counts}: {np.abs(got - want).max()}"

    def cut(self, which: int, length: int) -> None:
        """Truncate a sequence to ``length`` tokens."""
        sequence = self.sequences[which]
        self.net.cache.truncate(sequence, min(length, sequence.length))

    def begin_again(self, which: int) -> int:
        """Release a sequence and start it again from the prefix cache. Returns the number of cached tokens."""
        tokens = self.model.tokens[which]
        self.net.cache.release(self.sequences[which], tokens=tokens)
        self.sequences[which] = self.net.cache.find_prefix(tokens, len(tokens) - 1)
        return self.sequences[which].length

    def left(self, which: int) -> int:
        """Number of tokens that a sequence has not run yet."""
        return LENGTHS[which] - self.sequences[which].length


D, V, LAYERS = 256, 48, 2
MATRICES = {
    **{f"blk.{i}.{n}.weight": (w, D) for i in range(LAYERS) for n, w in (("attn_q", D), ("attn_k", 128))},
    **{f"blk.{i}.{n}.weight": (w, D) for i in range(LAYERS) for n, w in (("attn_v", 128), ("attn_output", D))},
    **{f"blk.{i}.ffn_{n}.weight": (D, D) for i in range(LAYERS) for n in ("gate", "up", "down")},
    "token_embd.weight": (V, D),
    "output.weight": (V, D),
}
METADATA = {
    "general.architecture": "llama",
    "llama.context_length": 1024,
    "llama.embedding_length": D,
    "llama.feed_forward_length": D,
    "llama.block_count": LAYERS,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "llama.rope.dimension_count": 64,
}


def write_quantised_llama(path: Path, *names: str, norm: float = 1.0) -> Path:
    """Write a random Llama whose matrices use the named formats in turn, by default all known formats.

    ``norm`` is the value of all norm weights.
    """
    known = formats()
    names = names or tuple(sorted(known))
    codes = {kind.name: code for code, kind in TENSOR_TYPES.items()}
    tensors = {}
    for i, (name, (rows, columns)) in enumerate(MATRICES.items()):
        form = known[names[i % len(names)]]
        raw = random_blocks(form, i, rows, columns // form.block, low=-14)
        tensors[name] = ((rows, columns), codes[form.name], raw.tobytes())
    norms = [f"blk.{i}.{n}_norm.weight" for i in range(LAYERS) for n in ("attn", "ffn")]
    for name in (*norms, "output_norm.weight"):
        tensors[name] = ((D,), 0, np.full(D, norm, np.float32).tobytes())
    path.write_bytes(gguf(METADATA, tensors))
    return path


QUANTISED = [form.name for form in quantised(dict(formats()))]
