"""Beam search on a model: forks of the prompt in the cache, all beams in one step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from pellucid.engine.inputs import Inputs, Prompt
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.output import Beams, BeamText, Timings, Usage
from pellucid.engine.request import Place, PrefixCache
from pellucid.errors import InvalidRequest
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.sample.beams import Beam, BeamOptions, BeamSearch
from pellucid.sample.options import Options
from pellucid.util.messages import brief

MEANINGLESS = ("stop", "until", "logprobs", "prompt_logprobs", "logprobs_of", "watch")
"""Options that are about a single text as it is made."""


def search(
    runner: ModelRunner,
    ids: list[int],
    hold: Callable[[list[int]], BlockTable],
    beams: BeamSearch,
) -> Iterator[list[Beam]]:
    """The loop for beams: each turn a token for every beam, all in one step. Gives the beams after each turn.

    A beam that goes on in two ways is forked in the cache.
    """
    prompt = hold(ids)
    rows = runner.prefill(prompt, ids[prompt.length :])[np.newaxis]
    sequences = [runner.fork(prompt)]
    try:
        while True:
            running = beams.step(list(rows))
            yield running
            if beams.done:
                return
            sequences = _branched(runner, sequences, [beam.parent for beam in running])
            chunks = [Chunk(sequence, [beam.node.token]) for sequence, beam in zip(sequences, running)]
            rows = np.concatenate(runner.forward_all(chunks))
    finally:
        runner.release(*sequences)


def _branched(runner: ModelRunner, sequences: list[BlockTable], parents: list[int]) -> list[BlockTable]:
    """A sequence for each child. One takes its parent's, the others fork it; those without children are given up."""
    taken: set[int] = set()
    made = []
    for parent in parents:
        made.append(runner.fork(sequences[parent]) if parent in taken else sequences[parent])
        taken.add(parent)
    for number, sequence in enumerate(sequences):
        if number not in taken:
            runner.release(sequence)
    return made


def search_beams(
    runner: ModelRunner,
    inputs: Inputs,
    keeper: PrefixCache,
    prompt: Prompt,
    options: Options,
    beams: BeamOptions,
) -> Beams:
    """The best ways to continue a prompt. Raises InvalidRequest for options that mean nothing to beams."""
    usual = Options()
    for name in MEANINGLESS:
        if getattr(options, name) != getattr(usual, name):
            raise InvalidRequest(
                f"{name}={brief(getattr(options, name))}: beams have no {name}; leave it out"
            )
    tokenizer, ids = inputs.tokenizer, inputs.prompt(prompt)
    limit, size = inputs.room(ids, options.max_new_tokens), inputs.vocabulary
    ends = options.ends(tokenizer, size)
    chain = options.chain()
    if not beams.do_sample:
        chain = chain.undrawn()
    elif chain.greedy:
        raise InvalidRequest(
            "temperature=0 with do_sample=True: nothing would be drawn; leave one of them out"
        )
    elif any(step.alone for step in chain.steps):
        raise InvalidRequest("mirostat=2: it follows one text, not beams; leave it out")
    sampler = chain.start(tokenizer, ids, ends, idle=runner.idle_core, vocabulary=size)
    found = BeamSearch(beams, sampler, ends, limit)
    place, times = Place(runner, keeper, size, options), list[float]()
    place.start = time.perf_counter()
    try:
        for _ in search(runner, ids, place.hold, found):
            times.append(time.perf_counter() - place.start)
            if options.max_time is not None and times[-1] >= options.max_time:
                found.stop("time")
                break
    finally:
        place.leave(ids)
    texts = [
        BeamText(
            tokenizer.decode(one.ids[:-1] if one.ids[-1] in ends else one.ids),
            one.ids,
            one.score,
            one.finish_reason,
            one.node,
        )
        for one in found.results()
    ]
    usage = Usage(len(ids), place.cached_tokens, sum(len(one.ids) for one in texts))
    queue, first, total = place.queue, times[0], times[-1]
    timings = Timings(queue, first - queue, first, total, total - queue)
    return Beams(texts, found.nodes, usage, timings, chain.seed if beams.do_sample else None, chain.steps)
