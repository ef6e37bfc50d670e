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
    """Run the task and yield its outputs, each after adding it to its builder.

    The user's function is called here, in the reader's thread; the task waits for each of its answers. It holds no
    reference to the request, so that an iterator that is dropped ends immediately.
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
    """The token of a sequence, added to its builder; the sequence stops if the user's function says so."""
    token = builders[number].add(token, time.perf_counter() - start)
    if token.finish_reason == "until":
        task.stop(number)
    return token


def _made(builders: list[OutputBuilder], found: tuple[int, TokenOutput]) -> tuple[int, MadeToken]:
    """The token of an output, without its logits, which a queue of many readers would hold."""
    number, output = found
    return number, MadeToken.of(output, builders[number].options)


def _begun(
    hooks: Sequence[Callable[[], object]], make: Callable[[], list[TextSequence]]
) -> list[TextSequence]:
    """The sequences of a request whose first step comes. It holds no reference to the request either."""
    for hook in hooks:
        hook()
    return make()


def _keep(watching: Watching | None, probes: Sequence[SequenceWatch]) -> None:
    """The sequences of a request begin: they become parts of the trace."""
    if watching is not None:
        for probe in probes:
            watching.keep(probe)


def _read(prompt: list[int], builder: OutputBuilder) -> list[int]:
    """The tokens that a sequence has read: all but the last one."""
    return [*prompt, *builder.ids[:-1]]


def _ahead(builders: list[OutputBuilder]) -> int:
    """How many results the task may be ahead of its reader."""
    return 1 if builders[0].options.until else AHEAD


class RequestGroup(TextGroup):
    """A prompt that several sequences continue, one for each chain, on an engine of this process.

    Iterate over (sequence number, token output), or ``start`` it and ``wait``; then read the ``results``. Errors in the
    request are raised by the constructor.

    ``begun`` are tokens of the answer that were made before, with the probabilities that the chain had given them: it
    goes on after them with the same random numbers, and the results have what follows. ``first_output`` is a position
    from which on logits are computed for whoever watches it.
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
        # A state cannot be taken back by a few tokens.
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
        """What is known of the prompt so far."""
        prompt = self._task.prompt
        return PromptFacts(prompt.cached or 0, self._task.queue, prompt.logprobs)

    @property
    def prompt_read(self) -> int | None:
        """The number of the prompt's tokens that are read or cached; None before its first step."""
        if (made := super().prompt_read) is not None:
            return made
        prompt = self._task.prompt
        return None if prompt.cached is None else min(prompt.table.length, len(prompt.tokens))

    @property
    def speculation(self) -> list[tuple[int, int]]:
        """Of each sequence, how many tokens were proposed, and how many of them were kept."""
        return self._task.speculation

    def start(
        self,
        heard: Callable[[int, MadeToken], object] | None = None,
        began: Callable[[], object] | None = None,
    ) -> None:
        """Start it, unless a function of the user has to be asked: the engine's thread collects the outputs.

        ``heard`` is called there with the number of each one's sequence, and what was kept of it; before that
        ``began``, when its first step comes.
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
        """Wait until it has ended, or let it run if it has not been started."""
        for _ in self._run or self:
            pass

    async def finished(self) -> None:
        """Wait in an event loop until it has ended; it must have been started. Cancelling this ends it."""
        assert self._run is not None
        async with aclosing(self._run.stream()) as nothing:
            async for _ in nothing:
                pass

    def attach(self, probes: Sequence[SequenceWatch]) -> None:
        """Watch its sequences from the next step on, one probe for each, unless they are watched already."""
        for probe, builder in zip(probes, self.builders):
            probe.tokens = partial(_read, self.prompt, builder)
        self._engine.between_steps(partial(self._task.watch, probes))

    def close(self) -> None:
        """End it."""
        if self._run:
            self._run.close()

    def stream(self) -> AsyncGenerator[tuple[int, MadeToken], None]:
        """As the iteration, for an event loop. It begins now: a full queue is reported by this call."""
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
