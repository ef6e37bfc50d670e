"""The workloads: prefill of prompts, decode of one sequence or of several together, and sentence vectors.

A workload has a ``kind`` and a description, ``what``. A run processes ``count`` units of the kind ``unit``. ``steps``
are the chunks of the timed steps, with placeholder sequences that have only the right lengths. ``seconds`` runs the
workload on a runner, and does not change the runner's cache.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import InvalidRequest, shown
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.model.spec import ModelSpec
from pellucid.runtime import cache
from pellucid.runtime.batch import STEP_SEQUENCES, Chunk
from pellucid.util.checks import whole

PROMPTS, DEPTHS, BATCHES, TOKENS = (128, 512, 2048), (16, 1024), (4, 16), 64
SENTENCE, SENTENCES = 32, 16  # tokens of a sentence, and sentences of a batch
# Sentences are repeated up to this number of tokens, so that a run takes a measurable time.
SENTENCE_TOKENS = 1024
MAX_TOKENS = 1 << 24  # the largest number of tokens that an option accepts


@contextlib.contextmanager
def temporary_tables(runner: ModelRunner, count: int) -> Iterator[list[cache.BlockTable]]:
    sequences = [cache.BlockTable() for _ in range(count)]
    try:
        yield sequences
    finally:
        for sequence in sequences:
            runner.cache.truncate(sequence, 0)


def prefill(runner: ModelRunner, table: cache.BlockTable, tokens: list[int]) -> NDArray[np.float32]:
    """Prefill tokens in the longest steps that the runner allows. Returns the last token's logits, (V,) float32."""
    logits = np.empty((0, 0), np.float32)
    for first in range(0, len(tokens), runner.limits.tokens):
        part = tokens[first : first + runner.limits.tokens]
        logits = runner.forward([Chunk(table, part, outputs=int(first + len(part) == len(tokens)))])
    row: NDArray[np.float32] = logits[-1]
    return row


def placeholder_ids(runner: ModelRunner, count: int) -> list[int]:
    """``count`` token ids for a prompt. The time of a step does not depend on the ids."""
    return [(100 + i % 1000) % runner.spec.embedding.vocabulary for i in range(count)]


@dataclass(frozen=True)
class PrefillWorkload:
    """Prefill of a prompt of ``tokens`` tokens, in the longest steps that the runner allows."""

    tokens: int
    kind, unit = "prefill", "tokens"

    @property
    def what(self) -> str:
        return f"prefill of {self.tokens:,}"

    @property
    def count(self) -> int:
        return self.tokens

    def steps(self, runner: ModelRunner) -> Iterator[list[Chunk]]:
        """One step for each part of the prompt; the last step has an output."""
        for first in range(0, self.tokens, runner.limits.tokens):
            last = min(first + runner.limits.tokens, self.tokens)
            yield [Chunk(cache.BlockTable(first), range(first, last), int(last == self.tokens))]

    def seconds(self, runner: ModelRunner) -> float:
        with temporary_tables(runner, 1) as (sequence,):
            start = time.perf_counter()
            prefill(runner, sequence, placeholder_ids(runner, self.tokens))
            return time.perf_counter() - start


@dataclass(frozen=True)
class DecodeWorkload:
    """Greedy decode of ``tokens`` tokens after ``depth`` tokens of context, for ``sequences`` sequences together."""

    depth: int
    tokens: int
    sequences: int = 1
    kind, unit = "decode", "tokens"

    @property
    def what(self) -> str:
        together = f", {self.sequences} sequences" if self.sequences > 1 else ""
        return f"decode after {self.depth:,}{together}"

    @property
    def count(self) -> int:
        return self.tokens * self.sequences

    def steps(self, runner: ModelRunner) -> Iterator[list[Chunk]]:
        for length in range(self.depth, self.depth + self.tokens):
            yield [Chunk(cache.BlockTable(length), range(1))] * self.sequences

    def seconds(self, runner: ModelRunner) -> float:
        with temporary_tables(runner, self.sequences) as sequences:
            prompt = placeholder_ids(runner, self.depth)
            ids = [int(prefill(runner, sequence, prompt).argmax()) for sequence in sequences]
            start = time.perf_counter()
            for _ in range(self.tokens):
                logits = runner.forward([Chunk(s, [token]) for s, token in zip(sequences, ids)])
                ids = [int(row.argmax()) for row in logits]
            return time.perf_counter() - start


@dataclass(frozen=True)
class EmbedWorkload:
    """Sentence vectors of ``sentences`` sentences of ``tokens`` tokens, in as few steps as possible."""

    tokens: int
    sentences: int = 1
    kind, unit = "embed", "sentences"

    @property
    def what(self) -> str:
        many = "a sentence" if self.sentences == 1 else f"{self.sentences} sentences"
        return f"{many} of {self.tokens:,}"

    @property
    def count(self) -> int:
        return self.sentences * max(1, SENTENCE_TOKENS // (self.tokens * self.sentences))

    def steps(self, runner: ModelRunner) -> Iterator[list[Chunk]]:
        """Steps with the maximum number of sentences that the runner's pages, tokens and sequences allow."""
        limits = runner.limits
        together = min(limits.tokens // self.tokens, limits.sequences, self.sentences)
        while not runner.cache.kv.fits([self.tokens] * together):
            together -= 1
        for _ in range(self.count // self.sentences):
            for first in range(0, self.sentences, together):
                rows = min(together, self.sentences - first)
                yield [Chunk(cache.BlockTable(), range(self.tokens), 0)] * rows

    def seconds(self, runner: ModelRunner) -> float:
        ids = placeholder_ids(runner, self.tokens)
        start = time.perf_counter()
        for step in self.steps(runner):
            with temporary_tables(runner, len(step)) as sequences:
                runner.forward([Chunk(sequence, ids, 0) for sequence in sequences])
        return time.perf_counter() - start


Workload: TypeAlias = PrefillWorkload | DecodeWorkload | EmbedWorkload


@dataclass(frozen=True)
class SuiteOptions:
    """A user's choice of measurements. None means the defaults. A 0 in a list is skipped, so (0,) measures nothing.

    ``prompts`` are lengths, ``depths`` tokens of context, ``batches`` numbers of sequences that are decoded together,
    ``tokens`` is the number of tokens to decode. Raises InvalidRequest if a value is not an integer, or is out of
    range.
    """

    prompts: Sequence[int] | None = None
    depths: Sequence[int] | None = None
    batches: Sequence[int] | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("prompt", self.prompts), ("depth", self.depths), ("batch", self.batches)):
            for value in values or ():
                whole(name, value, 0, MAX_TOKENS)
        if self.tokens is not None:
            whole("tokens", self.tokens, 1, MAX_TOKENS)


def suite(spec: ModelSpec, context: int, options: SuiteOptions) -> tuple[list[Workload], list[str]]:
    """The workloads to measure, and notes on defaults that do not fit into the context. Raises InvalidRequest if a
    chosen value does not fit into the context or a step, or nothing is left to measure.
    """
    if spec.encoder:
        raise InvalidRequest(f"{shown(spec.name)} is an encoder-decoder: only its requests can be timed, not its steps")
    notes: list[str] = []
    chosen = (_text_workloads if spec.generates else _sentence_workloads)(context, options, notes)
    if not chosen:
        raise InvalidRequest("nothing is left to measure: give a length that is not 0")
    return chosen, notes


def _text_workloads(context: int, options: SuiteOptions, notes: list[str]) -> list[Workload]:
    chosen: list[Workload] = [PrefillWorkload(n) for n in _lengths("prompt", options.prompts, PROMPTS, context, notes)]
    if context < 2:
        notes.append("a context of 1 token has no space for a second token: decode is left out")
        return chosen
    tokens = min(TOKENS, context - 1)
    if options.tokens is not None:
        tokens = whole("tokens", options.tokens, 1, context - 1, f"the context is {context:,}")
    depths = _lengths("depth", options.depths, DEPTHS, context - tokens, notes)
    chosen += [DecodeWorkload(depth, tokens) for depth in depths]
    depth = depths[0] if depths else min(DEPTHS[0], context - tokens)
    for batch in BATCHES if options.batches is None else options.batches:
        needed = batch * -(-(depth + tokens) // PAGE)
        if options.batches is not None:
            whole("batch", batch, 0, STEP_SEQUENCES)
        if needed <= -(-context // PAGE):
            chosen += [DecodeWorkload(depth, tokens, batch)] if batch else []
            continue
        least = f"{batch} sequences of {depth + tokens:,} tokens need a context of {needed * PAGE:,}"
        if options.batches is not None:
            raise InvalidRequest(f"batch={batch}: {least}; the context is {context:,}: use fewer or shorter sequences")
        notes.append(f"{least}: left out")
    return chosen


def _sentence_workloads(context: int, options: SuiteOptions, notes: list[str]) -> list[Workload]:
    for name, chosen in (("depth", options.depths), ("tokens", options.tokens)):
        if chosen is not None:
            raise InvalidRequest(f"{name} needs a model that generates text: use prompt and batch for sentences")
    lengths = _lengths("prompt", options.prompts, (SENTENCE, context), context, notes)
    batches = (SENTENCES,) if options.batches is None else options.batches
    short = min(SENTENCE, context)
    together = [EmbedWorkload(short, whole("batch", n, 0, STEP_SEQUENCES)) for n in batches if n]
    return [*(EmbedWorkload(n) for n in lengths[:1]), *together, *(EmbedWorkload(n) for n in lengths[1:])]


def _lengths(
    name: str, chosen: Sequence[int] | None, default: Sequence[int], limit: int, notes: list[str]
) -> list[int]:
    """The lengths, without duplicates. Defaults are cut to ``limit``. A user's length above ``limit`` raises."""
    if chosen is not None:
        return list(dict.fromkeys(whole(name, n, 0, limit, "the context holds no more") for n in chosen if n))
    if limit < max(default):
        notes.append(f"{name}: cut to {limit:,} tokens, the maximum for this context")
    return list(dict.fromkeys(min(n, limit) for n in default))
