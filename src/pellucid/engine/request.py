"""Running generations: what a request was told, and what is noted of it while its answers are made."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pellucid import pipeline
from pellucid.engine.inputs import Inputs, Prompt
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.output import Generation, Timings, Usage
from pellucid.engine.scoring import score
from pellucid.engine.sequence import TokenOutput
from pellucid.runtime import cache
from pellucid.sample.chain import SEED_BITS, Chain
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined, of_token
from pellucid.sample.options import Options
from pellucid.sample.trace import TokenTrace


@dataclass
class PrefixLease:
    """A sequence that a finished request left in the cache, and its tokens: a follow-up begins where it ends."""

    sequence: cache.BlockTable = field(default_factory=cache.BlockTable)
    tokens: list[int] = field(default_factory=list)


class PrefixCache:
    """Keeps the sequence of the last request, until another one or the cache wants its place.

    Nothing here waits for a lock: a request may end whenever Python collects garbage.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._kept: deque[PrefixLease] = deque()
        me = weakref.ref(self)  # a cache that held its owner would keep it alive

        def reclaim() -> None:
            if keeper := me():
                keeper._runner.drain()
                keeper._forget()

        runner.cache.reclaim = reclaim

    def take(self, ids: Sequence[int]) -> PrefixLease:
        """A sequence for a prompt: what the last request left, cut to what the two have in common, or a new one."""
        try:
            kept = self._kept.pop()
        except IndexError:
            return PrefixLease()
        common = 0
        while common < min(len(kept.tokens), len(ids) - 1) and kept.tokens[common] == ids[common]:
            common += 1
        self._runner.truncate(kept.sequence, common)
        del kept.tokens[common:]
        return kept

    def give_back(self, kept: PrefixLease, tokens: Sequence[int]) -> None:
        """A request has ended; ``tokens`` are those of its sequence, and perhaps more."""
        kept.tokens = list(tokens[: kept.sequence.length])
        self._kept.append(kept)
        while len(self._kept) > 1:
            try:
                self._runner.release(self._kept.popleft().sequence)
            except IndexError:  # somebody else has taken it
                return

    def _forget(self) -> None:
        """Let the kept sequence go: a running request needs its pages. Called by the cache, within a step."""
        try:
            while True:
                self._runner.cache.truncate(self._kept.pop().sequence, 0)
        except IndexError:
            return


class OutputBuilder:
    """What is noted of one answer."""

    def __init__(self, chain: Chain, options: Options) -> None:
        self.chain, self.options = chain, options
        self.ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.trace: list[TokenTrace] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.prefill = self.first = self.total = self.model = 0.0

    def add(self, piece: TokenOutput, seconds: float) -> None:
        """A token, so many seconds after the start."""
        self.total, self.model = seconds, self.model + piece.model_seconds
        if not self.ids:
            self.first, self.prefill = seconds, piece.model_seconds
        self.ids.append(piece.id)
        self.texts.append(piece.text)
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason
        options, draw = self.options, piece.draw
        if options.logprobs is not None:
            of = draw.logits if options.logprobs_of == "logits" else draw.candidates
            self.logprobs.append(of_token(of, draw.token, options.logprobs, draw.vocabulary))
        if options.watch:
            self.trace.append(piece.trace)


class Place:
    """A request's place in the cache. It does not know who iterates: an iterator that is dropped ends at once."""

    def __init__(self, runner: ModelRunner, keeper: PrefixCache, vocabulary: int, options: Options) -> None:
        self.start = self.queue = 0.0
        self.cached_tokens = 0
        self.prompt_logprobs: Logprobs | None = None
        self._runner, self._keeper, self._vocabulary = runner, keeper, vocabulary
        self._wanted, self._kept = options.prompt_logprobs, list[PrefixLease]()

    def hold(self, ids: list[int]) -> cache.BlockTable:
        """The sequence for the prompt; with its log-probabilities if they are wanted, which need all of its rows."""
        kept = self._keeper.take(ids)
        self._kept.append(kept)
        self.queue = time.perf_counter() - self.start
        if self._wanted is not None:
            self._runner.truncate(kept.sequence, 0)
            self.prompt_logprobs = score(self._runner, kept.sequence, ids, self._wanted, self._vocabulary)
        else:
            self.cached_tokens = kept.sequence.length
        return kept.sequence

    def leave(self, tokens: Sequence[int]) -> None:
        """The request has ended; ``tokens`` are those of its sequence, and perhaps more."""
        for kept in self._kept:
            self._keeper.give_back(kept, tokens)


def _noted(
    turns: Iterator[tuple[int, TokenOutput]], place: Place, notes: list[OutputBuilder], prompt: list[int]
) -> Iterator[tuple[int, TokenOutput]]:
    """The pieces, with what is to be told of them; at the end, however it comes, the cache gets its sequence."""
    place.start = time.perf_counter()
    try:
        for number, piece in turns:
            notes[number].add(piece, time.perf_counter() - place.start)
            yield number, piece
    finally:
        place.leave([*prompt, *notes[0].ids])


class RequestGroup:
    """Running answers to one prompt, one for each chain. Iterate over (number, piece); ``results`` tells the rest."""

    def __init__(
        self,
        runner: ModelRunner,
        inputs: Inputs,
        keeper: PrefixCache,
        prompt: Prompt,
        options: Options,
        chains: list[Chain],
    ) -> None:
        self.options = options
        self.notes = [OutputBuilder(chain, options) for chain in chains]
        self._place = Place(runner, keeper, inputs.vocabulary, options)
        self.prompt, turns = pipeline.generate(runner, inputs, prompt, options, chains, self._place.hold)
        self._pieces = _noted(turns, self._place, self.notes, self.prompt)

    def __iter__(self) -> Iterator[tuple[int, TokenOutput]]:
        return self._pieces

    def results(self) -> list[Generation]:
        """What has come of each so far; ``finish_reason`` is None while it could go on."""
        place = self._place
        return [
            Generation(
                text="".join(notes.texts),
                ids=list(notes.ids),
                finish_reason=notes.finish_reason,
                stop_reason=notes.stop_reason,
                usage=Usage(len(self.prompt), place.cached_tokens, len(notes.ids)),
                timings=Timings(place.queue, notes.prefill, notes.first, notes.total, notes.model),
                seed=None if notes.chain.greedy else notes.chain.seed & ((1 << SEED_BITS) - 1),
                chain=notes.chain.steps,
                logprobs=joined(notes.logprobs, wanted)
                if (wanted := self.options.logprobs) is not None
                else None,
                prompt_logprobs=place.prompt_logprobs,
                trace=notes.trace if self.options.watch else None,
            )
            for notes in self.notes
        ]


class Request:
    """A running generation. Iterate over its pieces; ``result`` tells how it went."""

    def __init__(self, runs: RequestGroup) -> None:
        self._runs = runs
        self._pieces = (piece for _, piece in runs)

    def __iter__(self) -> Iterator[TokenOutput]:
        return self._pieces

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return self._runs.notes[0].ids

    def result(self) -> Generation:
        """What has come of it so far; ``finish_reason`` is None while it could go on."""
        return self._runs.results()[0]
