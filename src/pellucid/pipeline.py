"""The whole way from text to text, on one page. This is what runs.

    text → tokenize → embed → +position → blocks ×L → norm → project → softmax → sample → detokenize → text

``forward`` says what a model does with numbers: it is executed once, when a model is loaded, and writes the plan
that every step runs (``pellucid plan MODEL`` prints it). ``generate`` and ``loop`` go round it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from pellucid.engine.inputs import Inputs, Prompt
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.sequence import TextSequence, TokenOutput
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.model.spec import ModelSpec
from pellucid.plan.block import block
from pellucid.plan.builder import Builder
from pellucid.plan.embedding import embed, embedding_norm
from pellucid.plan.passes import optimize
from pellucid.plan.plan import Plan
from pellucid.plan.position import position
from pellucid.plan.project import final_norm, project
from pellucid.runtime.cache import BlockTable
from pellucid.sample.chain import Chain
from pellucid.sample.options import Options


def forward(
    spec: ModelSpec,
    layouts: Mapping[str, PackedLayout],
    activation_bits: int = 8,
    kv_cache: str | None = None,
) -> Plan:
    """The plan of a model: token ids (T,) → logits (R, V), or sentence vectors (B, D).

    ``layouts`` and ``activation_bits`` say how weights are packed and how finely activations meet them, ``kv_cache``
    what keys and values are kept in (``plan/builder.py``).
    """
    plan = Builder(spec, layouts, activation_bits, kv_cache)
    x = embed(plan)  # each token's row of the embedding matrix           (T, D)
    x = position(plan, x)  # where it stands: a vector added, or angles to turn by
    x = embedding_norm(plan, x)
    for layer, kind in enumerate(spec.blocks):
        x = block(plan, layer, kind, x)  # attention and feed-forward, each added to x (T, D)
    x = final_norm(plan, x)  # only the rows whose logits are wanted          (R, D)
    logits = project(plan, x)  # a score for every token of the vocabulary      (R, V)
    return optimize(plan.finish(logits))


def generate(
    runner: ModelRunner,
    inputs: Inputs,
    prompt: Prompt,
    options: Options,
    chains: list[Chain],
    hold: Callable[[list[int]], BlockTable],
) -> tuple[list[int], Iterator[tuple[int, TokenOutput]]]:
    """From a prompt to its ids and the pieces of what follows. What can be wrong with a request is raised here.

    There is an answer for each chain; its number comes with its pieces. ``hold`` gives the sequence that the cache
    keeps for the ids, which may have a beginning of them already; it becomes the first answer's.
    """
    ids = inputs.prompt(prompt)  # text → tokenize → ids
    tokenizer, limit = inputs.tokenizer, inputs.room(ids, options.max_new_tokens)
    size, idle = inputs.vocabulary, runner.idle_core
    ends = options.ends(tokenizer, size)
    samplers = [chain.start(tokenizer, ids, ends, idle=idle, vocabulary=size) for chain in chains]
    return ids, loop(
        runner, ids, hold, lambda: [TextSequence(tokenizer, options, s, ends, limit) for s in samplers]
    )


def loop(
    runner: ModelRunner,
    ids: list[int],
    hold: Callable[[list[int]], BlockTable],
    begin: Callable[[], list[TextSequence]],
) -> Iterator[tuple[int, TokenOutput]]:
    """The loop: each turn a token for every answer, until the model ends it, a stop string comes, or room is out."""
    answers, sequence, start = begin(), hold(ids), time.perf_counter()
    logits = runner.prefill(sequence, ids[sequence.length :])  # embed → +position → blocks → norm → project
    answers[0].sequence = sequence
    for answer in answers[1:]:
        answer.sequence = runner.fork(sequence)  # all go on from the same prompt
    running, rows = list(enumerate(answers)), [logits[np.newaxis]] * len(answers)
    try:
        while running:
            seconds = time.perf_counter() - start
            for (number, answer), several in zip(running, rows):
                took = seconds
                for row in several:
                    piece, took = answer.take(row, took), 0.0  # softmax → sample → detokenize → text
                    yield number, piece
                    if answer.done:
                        break
            runner.release(*(answer.sequence for number, answer in running if answer.done and number))
            running = [one for one in running if not one[1].done]
            start = time.perf_counter()
            if running:  # and round again
                rows = runner.forward_all([answer.next_chunk() for _, answer in running])
    finally:
        runner.release(*(answer.sequence for answer in answers[1:]))
