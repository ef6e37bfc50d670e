"""A request on an engine of this process."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from pellucid.engine.engine import Engine
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.job import MAX_UNREAD, Results, SchedulingOptions
from pellucid.engine.output import Beams, Generation, TokenOutput
from pellucid.engine.recorder import EngineRecorder, RequestTracer
from pellucid.engine.request import PromptOutput, Request, RequestOptions, SequenceOutput, run_together, unused_edits
from pellucid.engine.source import with_source
from pellucid.engine.state import EngineState
from pellucid.engine.task import Task
from pellucid.engine.tasks.generation import GenerationTask, PromptSequence, TextSequence
from pellucid.errors import InvalidRequest
from pellucid.sample.chain import Chain

if TYPE_CHECKING:
    from pellucid.sample.beams import BeamOptions


class LocalRequest(Request):
    """A request on an engine of this process. Iterate over its token outputs, then read the ``results``.

    ``resumed`` are tokens of the answer that were generated earlier, each with its probability after the sampler chain.
    Generation continues after these tokens with the same random numbers, and the results hold only the tokens that
    follow. ``expected`` are probable tokens of the answers, which are proposed as draft tokens.
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Inputs,
        prompt: PromptInput,
        options: RequestOptions,
        chains: Sequence[Chain],
        resumed: Sequence[tuple[int, float]] = (),
        first_output: int | None = None,
        expected: Sequence[int] = (),
    ) -> None:
        answered = [token for token, _ in resumed]
        super().__init__(inputs, prompt, options, answered, first_output)
        self._engine = engine
        self._source = source = engine.source(self.prompt, self.watching)
        if source is None:
            self.prompt = self.decoder_ids  # resumed tokens count as tokens of the prompt
        samplers = [self._sampler(chain, spare_core=engine.runner.idle_core) for chain in chains]
        for sampler in samplers:
            for token, probability in resumed:
                sampler.accept(token, probability)
        own = self.options
        if self.watching is not None:
            # The sequences record the sampler's chain for a trace. The results of the request do not include it.
            own = replace(own, watch=own.watch or self.watching.watches_chain)
        ids, alternatives = self.decoder_ids, own.prompt_logprobs
        self._prompt = PromptSequence(ids, self._first_output, alternatives, inputs.vocabulary, source)
        self._recorders = self._begin_recorders(len(chains), source.recorder if source else None)
        self._prompt.recorder = next(iter(self._recorders), None)
        # A recurrent state cannot be rolled back to reject draft tokens.
        speculates = not engine.cache.has_states and not any(recorder.calls for recorder in self._recorders)
        texts = [
            TextSequence(
                number, inputs.tokenizer, own, sampler, self.ends, self.limit,
                speculates=own.prompt_lookup and speculates,
                draft=engine.draft if own.draft and speculates else None,
                resumed=answered,
                expected=expected,
            )
            for number, sampler in enumerate(samplers)
        ]  # fmt: skip
        self._task = GenerationTask(engine.cache, engine.step_times, self._prompt, texts, self._recorders)
        self._work = with_source(source, self._task)
        self.outputs = [SequenceOutput(chain, own, source or self._prompt) for chain in chains]
        for recorder, output in zip(self._recorders, self.outputs):
            recorder.tokens, recorder.outputs = partial(_read_tokens, ids, output), output
        self._results: Results[TokenOutput] | None = None
        self._cancel: Callable[[], object] | None = None
        self._tokens: Iterator[TokenOutput] | None = None
        self.on_end: Callable[[list[str]], object] | None = None
        """Called with ``unused_edits`` after the last token of an iteration. Must hold no reference to the request."""
        self._begun = False
        self.runs_for_results = False
        """True: ``results`` runs a request that nobody has begun. False: they are empty then, as after a refusal."""

    def _begin(self) -> None:
        """Add the sequences of the request to the trace. Raises InvalidRequest if the request has begun."""
        if self._begun:
            raise InvalidRequest(
                "the request has begun: it runs once; wait for it, or continue the iteration that began it"
            )
        self._begun = True
        if self.watching is not None:
            for recorder in self._recorders:
                self.watching.keep(recorder)

    def __iter__(self) -> Iterator[TokenOutput]:
        if self._tokens is None:
            self._begin()
            self._tokens = _run(
                self._engine, self._work, self._task, self.scheduling, self.outputs, self.watching, self.on_end
            )
        return self._tokens

    @property
    def prompt_output(self) -> PromptOutput:
        """The output of the prefill so far."""
        cached = (self._source or self._prompt).cached
        identity = self.receipts.identity if self.receipts else None
        return PromptOutput(cached or 0, self._task.queue, self._prompt.logprobs, identity)

    @property
    def prompt_read(self) -> int | None:
        """Number of the prompt's tokens that are read or cached; None before its first step."""
        if (count := super().prompt_read) is not None:
            return count
        prompt = self._source or self._prompt
        return None if prompt.cached is None else min(prompt.table.length, len(prompt.tokens))

    @property
    def ids(self) -> list[int]:
        """The tokens that the first sequence has generated so far."""
        return self.outputs[0].ids

    @property
    def speculation(self) -> list[tuple[int, int]]:
        """Number of draft tokens and number of accepted draft tokens, for each sequence."""
        return self._task.speculation

    def start(
        self, on_token: Callable[[TokenOutput], object] | None = None, on_begin: Callable[[], object] | None = None
    ) -> None:
        """Start the request. The engine's thread collects the outputs and calls the two functions.

        ``on_begin`` is called before the first step, ``on_token`` with each token output. With an ``until`` function
        the request does not start here, but in ``wait`` or ``finished``, whose thread calls the function.
        """
        self._task.on_begin = on_begin
        if self.options.until:
            return
        start, outputs = time.perf_counter(), self.outputs

        def collect(output: TokenOutput) -> None:
            output = _without_draw(output)
            outputs[output.sequence].add(output, time.perf_counter() - start)
            if on_token:
                on_token(output)

        self._begin()
        self._results = self._engine.submit(self._work, self.scheduling, deliver=collect)
        self._cancel = self._results.close

    def wait(self) -> None:
        """Wait until the request has ended. Runs it if it has not been started."""
        if not self._was_streamed:
            for _ in self._results or self:
                pass

    async def finished(self) -> None:
        """Wait in an event loop until the request has ended. Cancelling the wait cancels the request.

        Runs the request if it has not been started.
        """
        if not self._was_streamed:
            async with aclosing(self._results.stream() if self._results else self.stream()) as tokens:
                async for _ in tokens:
                    pass

    @property
    def _was_streamed(self) -> bool:
        """True if a stream has ended, and nothing is left to wait for."""
        return self._results is None and self._tokens is None and all(one.ended for one in self.outputs)

    def results(self) -> list[Generation]:
        """As in ``Request``. Runs the request first if ``runs_for_results`` and nobody has begun it."""
        if self.runs_for_results and not self._begun:
            self.wait()
        return super().results()

    def attach(self, recorders: Sequence[EngineRecorder], source: EngineRecorder | None = None) -> None:
        """Watch the sequences from the next step on, with one recorder each, unless they are watched already.

        In an encoder-decoder the recorder ``source`` watches the source, unless the encoder has run it.
        """
        for recorder, output in zip(recorders, self.outputs):
            recorder.tokens = partial(_read_tokens, self._prompt.tokens, output)
        self._engine.between_steps(partial(self._attach, recorders, source))

    def _attach(self, recorders: Sequence[EngineRecorder], source: EngineRecorder | None) -> None:
        self._task.watch(recorders)
        if self._source is not None:
            self._source.watch(source)

    def close(self) -> None:
        """Cancel a request that was started or is streamed. An iteration is cancelled by closing its iterator."""
        if self._cancel:
            self._cancel()

    def stream(self) -> AsyncGenerator[TokenOutput, None]:
        """Start the request, and yield its tokens in an event loop.

        Raises QueueFull at the call, not at the first iteration.
        """
        self._begin()
        unread = _max_unread(self.outputs)
        results = self._engine.submit(self._work, self.scheduling, max_unread=unread, convert=_without_draw)
        self._cancel = results.close
        return self._stream(results)

    async def _stream(self, results: Results[TokenOutput]) -> AsyncGenerator[TokenOutput, None]:
        task, outputs, start = self._task, self.outputs, time.perf_counter()
        async with aclosing(results.stream()) as tokens:
            async for token in tokens:
                if not outputs[token.sequence].ended:
                    yield _add(task, outputs, token, start)


@dataclass(frozen=True)
class EngineBackend:
    """Runs requests on an engine of this process."""

    engine: Engine

    @property
    def most_answers(self) -> int:
        """Maximum number of sequences of a step."""
        return self.engine.runner.limits.sequences

    def submit(
        self, inputs: Inputs, prompt: PromptInput, options: RequestOptions, n: int = 1, resumed: Sequence[int] = ()
    ) -> LocalRequest:
        chains, certain = options.generation.chain().with_seeds(n), [(token, 1.0) for token in resumed]
        return LocalRequest(self.engine, inputs, prompt, options, chains, certain)

    def samples(self, inputs: Inputs, prompt: PromptInput, options: RequestOptions, count: int) -> list[LocalRequest]:
        """Generate ``count`` answers to a prompt, in several requests if the answers do not fit into one step.

        Later requests find the prompt in the prefix cache. The time limit applies to all requests together.
        """
        own, size = options.generation, self.most_answers
        chains, requests = own.chain().with_seeds(count), list[LocalRequest]()
        end = None if own.max_time is None else time.perf_counter() + own.max_time
        for first in range(0, count, size):
            if end is not None and first:
                own = replace(own, max_time=max(end - time.perf_counter(), 1e-9))
            batch = structs.replace(options, generation=own)
            request = LocalRequest(self.engine, inputs, prompt, batch, chains[first : first + size])
            run_together([request])
            requests.append(request)
        return requests

    def search(self, inputs: Inputs, prompt: PromptInput, options: RequestOptions, beams: BeamOptions) -> Beams:
        from pellucid.engine.tasks.beam_search import search_beams

        return search_beams(self.engine, inputs, prompt, options, beams)

    def state(self) -> EngineState:
        return self.engine.state()

    def replica_states(self) -> None:
        return None


def _run(
    engine: Engine,
    work: Task[TokenOutput],
    task: GenerationTask,
    scheduling: SchedulingOptions,
    outputs: list[SequenceOutput],
    watching: RequestTracer | None,
    on_end: Callable[[list[str]], object] | None,
) -> Generator[TokenOutput, None, None]:
    """Run ``work``, the task with its source, and yield its token outputs after adding them to ``outputs``.

    The request's ``until`` function runs here, in the reader's thread, and the task waits for the result of each call.
    The generator holds no reference to the request, so that a dropped iterator ends immediately.
    """
    start = time.perf_counter()
    for token in engine.run(work, scheduling, max_unread=_max_unread(outputs)):
        if not outputs[token.sequence].ended:
            yield _add(task, outputs, token, start)
    if on_end:
        on_end(unused_edits(watching, task.prompt.tokens, outputs))


def _add(task: GenerationTask, outputs: list[SequenceOutput], token: TokenOutput, start: float) -> TokenOutput:
    """Add a token to the output of its sequence. Stops the sequence if ``until`` returns True."""
    token = outputs[token.sequence].add_or_stop(token, time.perf_counter() - start)
    if token.finish_reason == "until":
        task.stop(token.sequence)
    return token


def _without_draw(token: TokenOutput) -> TokenOutput:
    return structs.replace(token, draw=None)


def _read_tokens(prompt: list[int], output: SequenceOutput) -> list[int]:
    """The tokens that a sequence has read: all except the last."""
    return [*prompt, *output.ids[:-1]]


def _max_unread(outputs: list[SequenceOutput]) -> int:
    """Maximum number of unread results: 1 with an ``until`` function, which may end the text at each token."""
    return 1 if outputs[0].options.until else MAX_UNREAD
