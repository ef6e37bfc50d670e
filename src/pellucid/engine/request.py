"""Requests: a prompt with its options, the task that runs it, and its results."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from functools import partial

from msgspec import structs

from pellucid.engine.engine import AHEAD, Engine
from pellucid.engine.generation import GenerationTask, Prompt
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.job import USUAL, Admission
from pellucid.engine.output import Generation
from pellucid.engine.probe import SequenceWatch, Watching
from pellucid.engine.run import Run
from pellucid.engine.sequence import TextSequence, TokenOutput
from pellucid.engine.text_group import MadeToken, OutputBuilder, PromptFacts, TextGroup
from pellucid.sample.chain import Chain
from pellucid.sample.options import Options


def _collect(
    engine: Engine,
    task: GenerationTask,
    how: Admission,
    builders: list[OutputBuilder],
    begin: Callable[[], object],
) -> Generator[tuple[int, TokenOutput], None, None]:
    """Run the task and yield its outputs. Each output is first added to its builder.

    The request's ``until`` function runs here, in the reader's thread; the task waits for each of its answers. The
    generator holds no reference to the request, so that a dropped iterator ends immediately.
    """
    begin()
    start = time.perf_counter()
    for number, output in engine.run(task, how, ahead=_ahead(builders)):
        if not builders[number].ended:
            token = _added(task, builders, number, MadeToken.of(output, builders[number].options), start)
            if token.finish_reason != output.finish_reason:
                changes = {"text": token.text, "finish_reason": token.finish_reason, "held": token.held}
                output = structs.replace(output, **changes)
            yield number, output


def _added(
    task: GenerationTask, builders: list[OutputBuilder], number: int, token: MadeToken, start: float
) -> MadeToken:
    """Add a sequence's token to its builder, and return it. Stops the sequence if ``until`` returns True."""
    token = builders[number].add(token, time.perf_counter() - start)
    if token.finish_reason == "until":
        task.stop(number)
    return token


def _made(builders: list[OutputBuilder], found: tuple[int, TokenOutput]) -> tuple[int, MadeToken]:
    """Convert an output to a token without logits. Queues of slow readers would keep the logits in memory."""
    number, output = found
    return number, MadeToken.of(output, builders[number].options)


def _begun(
    hooks: Sequence[Callable[[], object]], make: Callable[[], list[TextSequence]]
) -> list[TextSequence]:
    """Call the hooks of a request's first step, and make its sequences. Holds no reference to the request."""
    for hook in hooks:
        hook()
    return make()


def _keep(watching: Watching | None, probes: Sequence[SequenceWatch]) -> None:
    """Add the sequences of a request to the trace."""
    if watching is not None:
        for probe in probes:
            watching.keep(probe)


def _read(prompt: list[int], builder: OutputBuilder) -> list[int]:
    """The tokens that a sequence has read: all except the last."""
    return [*prompt, *builder.ids[:-1]]


def _ahead(builders: list[OutputBuilder]) -> int:
    """Maximum number of unread results: 1 with an ``until`` function, which may end the text at each token."""
    return 1 if builders[0].options.until else AHEAD


class RequestGroup(TextGroup):
    """A prompt that several sequences continue, one for each chain, on an engine of this process.

    Iterate over (sequence number, token output), or call ``start`` and ``wait``; then read the ``results``. The
    constructor raises errors in the request.

    ``begun`` are already generated tokens of the answer, with their probabilities after the chain. Generation continues
    after them with the same random numbers, and the results hold only the tokens that follow. Logits are computed from
    position ``first_output`` on (None: only where the request needs them).
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Inputs,
        prompt: PromptInput,
        options: Options,
        chains: list[Chain],
        how: Admission = USUAL,
        watching: Watching | None = None,
        begun: Sequence[tuple[int, float]] = (),
        first_output: int | None = None,
    ) -> None:
        self.options, self.watching = options, watching
        ids = inputs.prompt(prompt)  # text → tokenize → ids
        tokenizer = inputs.tokenizer
        size, spare_core = inputs.vocabulary, engine.runner.idle_core
        ends = options.ends(tokenizer, size)
        samplers = [
            chain.start(tokenizer, ids, ends, spare_core=spare_core, vocabulary=size) for chain in chains
        ]
        made = [token for token, _ in begun]
        if begun:
            ids = inputs.prompt([*ids, *made])
            for sampler in samplers:
                for token, probability in begun:
                    sampler.accept(token, probability)
        limit = inputs.answer_limit(ids, options.max_new_tokens)
        if watching is not None and watching.watches_chain:
            options = replace(options, watch=True)
        self.builders = [OutputBuilder(chain, options) for chain in chains]
        wanted = first_output if watching is None else watching.first_output
        first = 0 if options.prompt_logprobs is not None else len(ids) - 1
        first = first if wanted is None else min(wanted, first)
        most = len(ids) + limit - 1  # the last token is not read
        probes = (
            [] if watching is None else watching.begin(len(ids), len(chains), most=most, first_output=first)
        )
        for probe, builder in zip(probes, self.builders):
            probe.tokens, probe.outputs = partial(_read, ids, builder), builder
        # A recurrent state cannot be rolled back to reject draft tokens.
        can_go_back = not engine.cache.has_states
        speculates = options.prompt_lookup and can_go_back
        draft = engine.draft if options.draft and can_go_back else None
        hooks = self._hooks = list[Callable[[], object]]()

        def texts() -> list[TextSequence]:
            return [
                TextSequence(
                    tokenizer, options, sampler, ends, limit, speculates=speculates, draft=draft, begun=made
                )
                for sampler in samplers
            ]

        self._task = GenerationTask(
            engine.cache,
            engine.pace,
            Prompt(
                ids,
                options.prompt_logprobs,
                size,
                probe=probes[0] if probes else None,
                first_output=wanted,
            ),
            partial(_begun, hooks, texts),
            probes,
        )
        for builder in self.builders:
            builder.prompt = self._task.prompt
        self._engine, self._how = engine, how
        self._run: Run[tuple[int, TokenOutput]] | None = None
        self._begin = partial(_keep, watching, probes)
        self.outputs = _collect(engine, self._task, how, self.builders, self._begin)

    def __iter__(self) -> Iterator[tuple[int, TokenOutput]]:
        return self.outputs

    @property
    def prompt(self) -> list[int]:
        """The tokens of the prompt."""
        return self._task.prompt.tokens

    @property
    def facts(self) -> PromptFacts:
        """Facts about the prompt so far."""
        prompt = self._task.prompt
        return PromptFacts(prompt.cached or 0, self._task.queue, prompt.logprobs)

    @property
    def prompt_read(self) -> int | None:
        """Number of the prompt's tokens that are read or cached; None before its first step."""
        if (made := super().prompt_read) is not None:
            return made
        prompt = self._task.prompt
        return None if prompt.cached is None else min(prompt.table.length, len(prompt.tokens))

    @property
    def speculation(self) -> list[tuple[int, int]]:
        """Number of draft tokens and number of accepted draft tokens, for each sequence."""
        return self._task.speculation

    def start(
        self,
        heard: Callable[[int, MadeToken], object] | None = None,
        began: Callable[[], object] | None = None,
    ) -> None:
        """Start the request. The engine's thread collects the outputs and calls the two functions.

        ``began`` is called before the first step, ``heard`` with the sequence number and the token of each output. With
        an ``until`` function the request does not start here, but in ``wait``.
        """
        if began:
            self._hooks.append(began)
        start, builders = time.perf_counter(), self.builders
        if self.options.until:
            return

        def collect(found: tuple[int, TokenOutput]) -> None:
            number, token = _made(builders, found)
            builders[number].keep(token, time.perf_counter() - start)
            if heard:
                heard(number, token)

        self._begin()
        self._run = self._engine.submit(self._task, self._how, deliver=collect)

    def wait(self) -> None:
        """Wait until the request has ended. Runs it if it has not been started."""
        for _ in self._run or self:
            pass

    async def finished(self) -> None:
        """Wait in an event loop until the started request has ended. Cancelling the wait cancels the request."""
        assert self._run is not None
        async with aclosing(self._run.stream()) as nothing:
            async for _ in nothing:
                pass

    def attach(self, probes: Sequence[SequenceWatch]) -> None:
        """Watch the sequences from the next step on, with one probe each, unless they are watched already."""
        for probe, builder in zip(probes, self.builders):
            probe.tokens = partial(_read, self.prompt, builder)
        self._engine.between_steps(partial(self._task.watch, probes))

    def close(self) -> None:
        """Cancel the request."""
        if self._run:
            self._run.close()

    def stream(self) -> AsyncGenerator[tuple[int, MadeToken], None]:
        """Start the request, and return its outputs for an event loop. Raises QueueFull in this call."""
        self._begin()
        made = partial(_made, self.builders)
        ahead = _ahead(self.builders)
        return self._streamed(self._engine.submit(self._task, self._how, ahead=ahead, convert=made))

    async def _streamed(self, run: Run[tuple[int, MadeToken]]) -> AsyncGenerator[tuple[int, MadeToken], None]:
        task, builders, start = self._task, self.builders, time.perf_counter()
        async with aclosing(run.stream()) as tokens:
            async for number, token in tokens:
                if not builders[number].ended:
                    yield number, _added(task, builders, number, token, start)


def _outputs_of(group: RequestGroup, ended: Callable[[RequestGroup], object]) -> Iterator[TokenOutput]:
    with closing(group.outputs) as outputs:
        for _, output in outputs:
            yield output
    ended(group)


class Request:
    """A request group with one sequence. Iterate over its token outputs, then read the ``result``.

    ``ended`` is called with the group after the last output.
    """

    def __init__(
        self, group: RequestGroup, ended: Callable[[RequestGroup], object] = lambda group: None
    ) -> None:
        self._group = group
        self._outputs = _outputs_of(group, ended)

    def __iter__(self) -> Iterator[TokenOutput]:
        return self._outputs

    @property
    def ids(self) -> list[int]:
        """The tokens generated so far."""
        return self._group.builders[0].ids

    def result(self) -> Generation:
        """The result so far; ``finish_reason`` is None if the sequence has not ended."""
        return self._group.results()[0]
