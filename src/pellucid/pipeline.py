"""The whole way from text to text, on one page. This is what runs.

    text → tokenize → embed → +position → blocks ×L → norm → project → softmax → sample → detokenize → text

``forward`` says what a model does with numbers: it is executed once, when a model is loaded, and writes the plan
that every step runs (``pellucid plan MODEL`` prints it). ``generate`` and ``loop`` go round it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.inputs import Inputs, Prompt
from pellucid.kernels.packed import Packed
from pellucid.model.spec import ModelSpec
from pellucid.plan.block import block
from pellucid.plan.builder import Builder
from pellucid.plan.embedding import embed, embedding_norm
from pellucid.plan.network import Network
from pellucid.plan.passes import optimize
from pellucid.plan.plan import Plan
from pellucid.plan.position import position
from pellucid.plan.project import final_norm, project
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import Sequence
from pellucid.sample.beams import Beam, BeamSearch
from pellucid.sample.candidates import Candidates
from pellucid.sample.chain import Chain, Draw, Sampler
from pellucid.sample.logprobs import Logprobs, joined, of_token
from pellucid.sample.options import Options
from pellucid.sample.trace import TokenTrace, of_draw
from pellucid.tokenize import Tokenizer


def forward(
    spec: ModelSpec, layouts: Mapping[str, Packed], planes: int = 1, kv_cache: str | None = None
) -> Plan:
    """The plan of a model: token ids (T,) → logits (R, V), or sentence vectors (B, D).

    ``layouts`` and ``planes`` say how weights are packed and how finely activations meet them, ``kv_cache`` what keys
    and values are kept in (``plan/builder.py``).
    """
    plan = Builder(spec, layouts, planes, kv_cache)
    x = embed(plan)  # each token's row of the embedding matrix           (T, D)
    x = position(plan, x)  # where it stands: a vector added, or angles to turn by
    x = embedding_norm(plan, x)
    for layer, kind in enumerate(spec.blocks):
        x = block(plan, layer, kind, x)  # attention and feed-forward, each added to x (T, D)
    x = final_norm(plan, x)  # only the rows whose logits are wanted          (R, D)
    logits = project(plan, x)  # a score for every token of the vocabulary      (R, V)
    return optimize(plan.finish(logits))


MOST_FORCED = 7
"""Tokens without a choice that are read with the one before them."""


@dataclass(frozen=True)
class Piece:
    """One turn of the loop: the token that was sampled and how, and the text that became certain.

    ``finish_reason`` says why it is the last, if it is: "stop" (a token or a string that ends the text, which is
    ``stop_reason``), "length" (as many tokens as were wanted, or as the context holds), "time", or "until" (the
    request's own function). ``model_seconds`` is how long the model took for the logits, prompt and all.
    """

    id: int
    text: str
    draw: Draw
    model_seconds: float
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def trace(self) -> TokenTrace:
        """What the chain did for this token, if the request is one to ``watch``."""
        return of_draw(self.draw)


class Answer:
    """One way to continue a prompt, on its way: what says the next token, what ends the text, what the cache has."""

    def __init__(self, tokenizer: Tokenizer, options: Options, sampler: Sampler, limit: int) -> None:
        self.sampler, self.sequence = sampler, Sequence()
        self.last, self.done = -1, False
        self._tokenizer, self._watch, self._limit = tokenizer, options.watch, limit
        self._ends, self._ending, self._detokenizer = (
            options.ends(tokenizer),
            options.ending(),
            tokenizer.stream(),
        )

    def take(self, logits: NDArray[np.float32], seconds: float) -> Piece:
        """The token that these logits (V,) give, and its text."""
        # Some matrices are padded with rows that are no tokens.
        draw = self.sampler.sample(
            logits[: self._tokenizer.vocab_size], watch=self._watch
        )  # softmax → sample
        self.last, self._limit = draw.token, self._limit - 1
        if draw.token in self._ends:
            self.done = True
            text = self._ending.flush(self._detokenizer.flush())
            return Piece(draw.token, text, draw, seconds, "stop", draw.token)
        text, reason = self._ending.push(
            self._detokenizer.push(draw.token), last=not self._limit
        )  # detokenize → text
        if self.sampler.complete and reason != "stop":
            text, reason = text + self._ending.flush(self._detokenizer.flush()), "stop"
        self.done = reason is not None
        return Piece(draw.token, text, draw, seconds, reason, self._ending.found)

    def next_chunk(self) -> Chunk:
        """The token that came, and those that must come after it: they are read together."""
        tokens = [self.last, *self.sampler.forced[: min(MOST_FORCED, self._limit - 1)]]
        return Chunk(self.sequence, tokens, outputs=len(tokens))


def generate(
    network: Network,
    inputs: Inputs,
    prompt: Prompt,
    options: Options,
    chains: list[Chain],
    hold: Callable[[list[int]], Sequence],
) -> tuple[list[int], Iterator[tuple[int, Piece]]]:
    """From a prompt to its ids and the pieces of what follows. What can be wrong with a request is raised here.

    There is an answer for each chain; its number comes with its pieces. ``hold`` gives the sequence that the cache
    keeps for the ids, which may have a beginning of them already; it becomes the first answer's.
    """
    ids = inputs.prompt(prompt)  # text → tokenize
    room = network.limits.context - len(ids)
    limit, ends = min(room, options.max_new_tokens or room), options.ends(inputs.tokenizer)
    samplers = [chain.start(inputs.tokenizer, ids, ends, idle=network.idle_core) for chain in chains]
    return ids, loop(
        network, ids, hold, lambda: [Answer(inputs.tokenizer, options, s, limit) for s in samplers]
    )


def loop(
    network: Network,
    ids: list[int],
    hold: Callable[[list[int]], Sequence],
    begin: Callable[[], list[Answer]],
) -> Iterator[tuple[int, Piece]]:
    """The loop: each turn a token for every answer, until the model ends it, a stop string comes, or room is out."""
    answers, sequence, start = begin(), hold(ids), time.perf_counter()
    logits = network.prefill(sequence, ids[sequence.length :])  # embed → +position → blocks → norm → project
    answers[0].sequence = sequence
    for answer in answers[1:]:
        answer.sequence = network.fork(sequence)  # all go on from the same prompt
    running, rows = list(enumerate(answers)), [logits[np.newaxis]] * len(answers)
    try:
        while running:
            seconds = time.perf_counter() - start
            for (number, answer), several in zip(running, rows):
                for at, row in enumerate(several):
                    yield number, answer.take(row, 0.0 if at else seconds)
                    if answer.done:
                        break
            running = [one for one in running if not one[1].done]
            start = time.perf_counter()
            if running:  # and round again
                rows = network.forward_all([answer.next_chunk() for _, answer in running])
    finally:
        network.release(*(answer.sequence for answer in answers[1:]))


def search(
    network: Network,
    ids: list[int],
    hold: Callable[[list[int]], Sequence],
    beams: BeamSearch,
    vocabulary: int,
) -> Iterator[list[Beam]]:
    """The loop for beams: each turn a token for every beam, all in one step. Gives the beams after each turn.

    A beam that goes on in two ways is forked in the cache.
    """
    prompt = hold(ids)
    rows = network.prefill(prompt, ids[prompt.length :])[np.newaxis]
    sequences = [network.fork(prompt)]
    try:
        while True:
            running = beams.step([row[:vocabulary] for row in rows])
            yield running
            if beams.done:
                return
            sequences = _branched(network, sequences, [beam.parent for beam in running])
            chunks = [Chunk(sequence, [beam.node.token]) for sequence, beam in zip(sequences, running)]
            rows = np.concatenate(network.forward_all(chunks))
    finally:
        network.release(*sequences)


def _branched(network: Network, sequences: list[Sequence], parents: list[int]) -> list[Sequence]:
    """A sequence for each child. One takes its parent's, the others fork it; those without children are given up."""
    taken: set[int] = set()
    made = []
    for parent in parents:
        made.append(network.fork(sequences[parent]) if parent in taken else sequences[parent])
        taken.add(parent)
    for number, sequence in enumerate(sequences):
        if number not in taken:
            network.release(sequence)
    return made


def predictions(
    network: Network, sequence: Sequence, ids: list[int], first: int = 1
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Teacher forcing: for each place of a text from ``first`` on, the place and the logits (V,) of the token there.

    The sequence is empty, and holds the text but for its last token in the end.
    """
    before, most = first - 1, min(network.limits.outputs, network.limits.tokens)
    if before:
        network.read(sequence, ids[:before])
    for start in range(before, len(ids) - 1, most):
        part = ids[start : min(start + most, len(ids) - 1)]
        logits = network.forward([Chunk(sequence, part, outputs=len(part))])
        yield from enumerate(logits, start + 1)


def score(
    network: Network, sequence: Sequence, ids: list[int], alternatives: int, vocabulary: int, first: int = 1
) -> Logprobs:
    """How likely each token of a text is after those before it, from place ``first`` on."""
    rows = [
        of_token(Candidates.of(row[:vocabulary], f"prompt token {place}"), ids[place], alternatives)
        for place, row in predictions(network, sequence, ids, first)
    ]
    return joined(rows, alternatives)
