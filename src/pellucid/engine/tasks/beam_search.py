"""Beam search on a model: beams are forks of the prompt's block table, and run in the same steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.engine import Engine
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.output import Beams, BeamText, Timings, Usage
from pellucid.engine.recorder import EngineRecorder, RequestTracer, blame_edits, raise_of
from pellucid.engine.request import RequestOptions
from pellucid.engine.source import SourceSequence, with_source
from pellucid.engine.task import ChunkOutput, Wait
from pellucid.errors import InvalidRequest, KernelError, brief
from pellucid.runtime.cached_sequence import CachedSequence
from pellucid.sample.beams import Beam, BeamOptions, BeamSearch
from pellucid.sample.options import Options
from pellucid.sample.step import options_of

NOT_FOR_BEAMS = ("stop", "until", "logprobs", "prompt_logprobs", "logprobs_of", "watch", "receipt")
"""Options that apply to a single text during generation. Beam search refuses them."""


class BeamSearchTask:
    """A task that prefills a prompt, then continues it with all beams of a search. Yields the beams after each step.

    A beam with several continuations is forked in the cache. The search ends ``max_time`` seconds after its first step.
    ``seconds`` is the duration of the steps so far, ``prefill_seconds`` the duration of the prefill, ``queue`` the time
    before the first step.
    """

    def __init__(
        self,
        cache: CacheManager,
        ids: list[int],
        beams: BeamSearch,
        max_time: float | None = None,
        watching: RequestTracer | None = None,
        source: SourceSequence | None = None,
    ) -> None:
        self._cache, self._beams, self._max_time, self._watching = cache, beams, max_time, watching
        # Recorders of the prompt (key 0) and of each running or finished beam (key: the id of its node in the tree).
        self._recorders: dict[int, EngineRecorder] = {}
        recorded = None if watching is None else watching.first_output
        first = len(ids) - 1 if recorded is None else min(recorded, len(ids) - 1)
        if watching is not None:
            most = len(ids) + beams.limit - 1  # the last token is not read
            (self._recorders[0],) = watching.begin(
                ids, most=most, first_output=first, source=source.recorder if source else None
            )
        self.prompt = CachedSequence(ids, first, recorder=self._recorders.get(0), source=source)
        self.queue, self._begun = 0.0, time.perf_counter()
        self._sequences: list[CachedSequence] = []
        self._rows: dict[CachedSequence, ChunkOutput] = {}
        self.seconds = self.prefill_seconds = 0.0

    @property
    def done(self) -> bool:
        """True if the search is over."""
        return self._beams.done

    def begin(self, waited: float) -> None:
        """Start the time limit."""
        self.queue, self._begun = waited, time.perf_counter()

    def runnable(self) -> Sequence[CachedSequence]:
        """The prompt during the prefill, then the beams whose logits are missing."""
        return [one for one in self.sequences() if one not in self._rows]

    def sequences(self) -> Sequence[CachedSequence]:
        """The prompt during the prefill, then all beams."""
        return self._sequences or [self.prompt]

    def process(self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float) -> Iterator[list[Beam] | Wait]:
        """Advance the search when the logits of all beams have arrived, and yield its beams."""
        raise_of(sequence.recorder)
        self.seconds += 0.0 if self._rows else seconds  # counted once if all beams run in one step
        if sequence.unread_tokens:
            return
        if sequence is self.prompt and not self._sequences:
            self.prefill_seconds, self._sequences = self.seconds, [self.prompt]
        self._rows[sequence] = outputs
        if len(self._rows) < len(self._sequences):
            return
        try:
            for job in self._beams.advance([self._rows[one][-1] for one in self._sequences]):
                yield Wait(job)
        except KernelError as error:
            blame_edits(sequence.recorder, error)
            raise
        running, self._rows = self._beams.beams, {}
        if self._max_time is not None and time.perf_counter() - self._begun >= self._max_time:
            self._beams.stop("time")
        yield running
        if not self._beams.done:
            self._fork(running)

    def _fork(self, running: list[Beam]) -> None:
        """Make a sequence for each child beam. One child takes its parent's block table, the others fork it.

        Block tables of beams without children are released.
        """
        taken: set[int] = set()
        made = []
        for beam in running:
            parent = self._sequences[beam.parent]
            table = self._cache.fork(parent.table) if beam.parent in taken else parent.table
            recorder = None
            if self._watching is not None:
                (recorder,) = self._watching.begin((), parent=parent.recorder)
                self._recorders[beam.node.id] = recorder
            tokens = [*parent.tokens, beam.node.token]
            made.append(CachedSequence(tokens, table=table, recorder=recorder, source=parent.source))
            taken.add(beam.parent)
        self._cache.release(*(one.table for number, one in enumerate(self._sequences) if number not in taken))
        self._sequences = made
        ended = {node.parent for node in self._beams.finished}
        alive = ended | {beam.node.id for beam in running}
        self._recorders = {node: recorder for node, recorder in self._recorders.items() if node in alive}

    def record(self) -> None:
        """Add the recorded values of the resulting texts to the trace, best first."""
        if self._watching is None:
            return
        for found in self._beams.results():
            recorder = self._recorders[self._beams.nodes[found.node].parent]
            tokens = [*self.prompt.tokens, *found.ids[:-1]]
            recorder.tokens = lambda tokens=tokens: tokens  # type: ignore[misc]
            self._watching.keep(recorder)

    def close(self) -> None:
        """Release the pages to the prefix cache."""
        self._beams.end()
        for one in self.sequences():
            self._cache.release(one.table, tokens=one.shared_tokens)


def search_beams(
    engine: Engine, inputs: Inputs, prompt: PromptInput, request: RequestOptions, beams: BeamOptions
) -> Beams:
    """Find the best continuations of a prompt.

    Raises:
        InvalidRequest: an option does not apply to beam search.
    """
    options, defaults = request.generation, Options()
    for name in NOT_FOR_BEAMS:
        if getattr(options, name) != getattr(defaults, name):
            raise InvalidRequest(f"{name}={brief(getattr(options, name))}: beams have no {name}; leave it out")
    tokenizer, prompt_ids = inputs.tokenizer, inputs.prompt(prompt)
    source = engine.source(prompt_ids, request.watching)
    ids = inputs.decoder_prompt(prompt_ids)
    limit, size = inputs.answer_limit(ids, options.max_new_tokens), inputs.vocabulary
    ends = options.ends(tokenizer, size)
    chain = options.chain()
    if not beams.do_sample:
        chain = chain.without_drawing()
    elif chain.greedy:
        raise InvalidRequest("temperature=0 with do_sample=True: nothing would be drawn; remove one of the two")
    elif lone := next((step for step in chain.steps if step.alone), None):
        option, *_ = options_of(type(lone))
        raise InvalidRequest(
            f"{option}={brief(getattr(lone, option))}: it applies to a single text, not to beams; leave it out"
        )
    spare_core = engine.runner.idle_core
    sampler = chain.start(tokenizer, ids, ends, spare_core=spare_core, vocabulary=size, limit=limit)
    search = BeamSearch(beams, sampler, ends, limit)
    task = BeamSearchTask(engine.cache, ids, search, options.max_time, request.watching, source)
    start = time.perf_counter()
    times = [time.perf_counter() - start for _ in engine.run(with_source(source, task), request.scheduling)]
    task.record()
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
    usage = Usage(len(prompt_ids), (source or task.prompt).cached or 0, sum(len(one.ids) for one in texts))
    timings = Timings(task.queue, task.prefill_seconds, times[0], times[-1], task.seconds)
    return Beams(texts, search.nodes, usage, timings, chain.seed if beams.do_sample else None, chain.steps)
