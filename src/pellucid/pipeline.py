"""The whole way from text to text, on one page. This is what runs.

    text → tokenize → embed → +position → blocks ×L → norm → project → softmax → sample → detokenize → text

``forward`` says what a model does with numbers: it is executed once, when a model is loaded, and writes the plan
that every step runs (``pellucid plan MODEL`` prints it). ``generate`` and ``loop`` go round it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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
from pellucid.sample.candidates import Candidates
from pellucid.sample.chain import Chain, Draw, Sampler
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined, of_token
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


def generate(
    network: Network,
    inputs: Inputs,
    prompt: Prompt,
    options: Options,
    chain: Chain,
    hold: Callable[[list[int]], Sequence],
) -> tuple[list[int], Iterator[Piece]]:
    """From a prompt to its ids and the pieces of what follows. What can be wrong with a request is raised here.

    ``hold`` gives the sequence that the cache keeps for the ids; it may have a beginning of them already.
    """
    ids = inputs.prompt(prompt)  # text → tokenize
    ends = options.ends(inputs.tokenizer)
    sampler = chain.start(inputs.tokenizer, ids, ends)
    return ids, loop(network, inputs.tokenizer, ids, options, ends, sampler, hold)


def loop(
    network: Network,
    tokenizer: Tokenizer,
    ids: list[int],
    options: Options,
    ends: frozenset[int],
    sampler: Sampler,
    hold: Callable[[list[int]], Sequence],
) -> Iterator[Piece]:
    """The loop: a token a turn, until the model ends, a stop string comes, or there is no room for more."""
    room = network.limits.context - len(ids)
    limit = min(room, options.max_new_tokens or room)
    ending, detokenizer = options.ending(), tokenizer.stream()
    sequence = hold(ids)
    tokens = ids[sequence.length :]
    for index in range(limit):
        start = time.perf_counter()
        logits = network.prefill(sequence, tokens)  # embed → +position → blocks → norm → project
        took = time.perf_counter() - start
        logits = logits[: tokenizer.vocab_size]  # some matrices are padded with rows that are no tokens
        draw = sampler.sample(logits, watch=options.watch)  # softmax → sample
        if draw.token in ends:
            yield Piece(draw.token, ending.flush(detokenizer.flush()), draw, took, "stop", draw.token)
            return
        text, reason = ending.push(detokenizer.push(draw.token), last=index + 1 == limit)  # detokenize → text
        if sampler.complete and reason != "stop":
            text, reason = text + ending.flush(detokenizer.flush()), "stop"
        yield Piece(draw.token, text, draw, took, reason, ending.found)
        if reason:
            return
        tokens = [draw.token]  # and round again


def score(
    network: Network, sequence: Sequence, ids: list[int], alternatives: int, vocabulary: int
) -> Logprobs:
    """How likely each token of a text is after those before it, the first apart: teacher forcing.

    The sequence is empty, and holds the text in the end.
    """
    rows: list[TokenLogprobs] = []
    step = min(network.limits.outputs, network.limits.tokens)
    for first in range(0, len(ids), step):
        part = ids[first : first + step]
        logits = network.forward([Chunk(sequence, part, outputs=len(part))])
        for row, token in zip(logits, ids[first + 1 : first + step + 1]):
            candidates = Candidates.of(row[:vocabulary], f"prompt token {first + len(rows)}")
            rows.append(of_token(candidates, token, alternatives))
    return joined(rows, alternatives)
