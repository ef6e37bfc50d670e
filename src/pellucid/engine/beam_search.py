"""Beam search on a model: the beams are forks of the prompt in the cache and run in the same steps."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from pellucid import pipeline
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.output import Beams, BeamText, Timings, Usage
from pellucid.engine.prefill import Prefill
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.pipeline import ChunkOutput
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.sample.beams import Beam, BeamOptions, BeamSearch
from pellucid.sample.options import Options
from pellucid.sample.step import options_of

NOT_FOR_BEAMS = ("stop", "until", "logprobs", "prompt_logprobs", "logprobs_of", "watch")
"""Options that apply to a single text while it is generated; beam search refuses them."""


class BeamSearchTask:
    """A task that reads a prompt, then continues it with all beams of a search. Yields the beams after each step.

    A beam with several continuations is forked in the cache. ``seconds`` is the duration of the steps so far.
    """

    def __init__(self, runner: ModelRunner, prefill: Prefill, beams: BeamSearch) -> None:
        self._runner, self._prefill, self._beams = runner, prefill, beams
        self._tables: list[BlockTable] = []
        self.seconds = 0.0

    @property
    def done(self) -> bool:
        """Whether the search is over."""
        return self._beams.done

    def pending(self) -> list[Chunk]:
        """The next tokens of the prompt, then the last token of each beam."""
        if not self._tables:
            return self._prefill.pending()
        return [Chunk(table, [beam.node.token]) for table, beam in zip(self._tables, self._beams.beams)]

    def take(self, outputs: list[ChunkOutput], seconds: float) -> Iterator[list[Beam]]:
        """Advance the search, and yield its beams; nothing until the prompt has been read."""
        self.seconds += seconds
        if not self._tables:
            logits = self._prefill.take(outputs, seconds)
            if logits is None:
                return
            outputs, self._tables = [logits], [self._runner.fork(self._prefill.table)]
        running = self._beams.step(list(np.concatenate(outputs)))
        yield running
        if not self._beams.done:
            self._tables = _fork_tables(self._runner, self._tables, [beam.parent for beam in running])

    def close(self) -> None:
        """Free the beams' pages, and leave the prompt's block table to the prefix cache."""
        self._runner.release(*self._tables)
        self._prefill.close(self._prefill.ids)


def _fork_tables(runner: ModelRunner, tables: list[BlockTable], parents: list[int]) -> list[BlockTable]:
    """A block table for each child: one child takes its parent's, the others fork it.

    The tables of beams without children are released.
    """
    taken: set[int] = set()
    made = []
    for parent in parents:
        made.append(runner.fork(tables[parent]) if parent in taken else tables[parent])
        taken.add(parent)
    runner.release(*(table for number, table in enumerate(tables) if number not in taken))
    return made


def search_beams(
    runner: ModelRunner,
    inputs: Inputs,
    prompt: PromptInput,
    options: Options,
    beams: BeamOptions,
) -> Beams:
    """Find the best continuations of a prompt.

    Raises:
        InvalidRequest: an option does not apply to beam search.
    """
    defaults = Options()
    for name in NOT_FOR_BEAMS:
        if getattr(options, name) != getattr(defaults, name):
            raise InvalidRequest(
                f"{name}={brief(getattr(options, name))}: beams have no {name}; leave it out"
            )
    tokenizer, ids = inputs.tokenizer, inputs.prompt(prompt)
    limit, size = inputs.answer_limit(ids, options.max_new_tokens), inputs.vocabulary
    ends = options.ends(tokenizer, size)
    chain = options.chain()
    if not beams.do_sample:
        chain = chain.without_drawing()
    elif chain.greedy:
        raise InvalidRequest(
            "temperature=0 with do_sample=True: nothing would be drawn; leave one of them out"
        )
    elif lone := next((step for step in chain.steps if step.alone), None):
        option, *_ = options_of(type(lone))
        raise InvalidRequest(
            f"{option}={brief(getattr(lone, option))}: it follows one text, not beams; leave it out"
        )
    sampler = chain.start(tokenizer, ids, ends, spare_core=runner.idle_core, vocabulary=size)
    search = BeamSearch(beams, sampler, ends, limit)
    prefill, times = Prefill(runner, ids, None, size), list[float]()
    task, start = BeamSearchTask(runner, prefill, search), time.perf_counter()
    try:
        for _ in pipeline.run(runner, task):
            times.append(time.perf_counter() - start)
            if options.max_time is not None and times[-1] >= options.max_time:
                search.stop("time")
                break
    finally:
        task.close()
    texts = [
        BeamText(
            tokenizer.decode(one.ids[:-1] if one.ids[-1] in ends else one.ids),
            one.ids,
            one.score,
            one.finish_reason,
            one.node,
        )
        for one in search.results()
    ]
    usage = Usage(len(ids), prefill.cached_tokens, sum(len(one.ids) for one in texts))
    timings = Timings(prefill.queue, prefill.seconds, times[0], times[-1], task.seconds)
    return Beams(texts, search.nodes, usage, timings, chain.seed if beams.do_sample else None, chain.steps)
