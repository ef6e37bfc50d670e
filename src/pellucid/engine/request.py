"""Requests: a prompt with its options, the task that runs it, and its results."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pellucid import pipeline
from pellucid.engine.generation import GenerationTask
from pellucid.engine.inputs import Inputs, PromptInput
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.output import Generation, Timings, Usage
from pellucid.engine.prefill import Prefill
from pellucid.engine.sequence import TextSequence, TokenOutput
from pellucid.sample.chain import SEED_BITS, Chain
from pellucid.sample.logprobs import TokenLogprobs, joined, of_token
from pellucid.sample.options import Options
from pellucid.sample.trace import TokenTrace


class OutputBuilder:
    """Collects the token outputs of one sequence."""

    def __init__(self, chain: Chain, options: Options) -> None:
        self.chain, self.options = chain, options
        self.ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.trace: list[TokenTrace] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.prefill_seconds = self.first = self.total = self.model = 0.0

    def add(self, output: TokenOutput, seconds: float) -> None:
        """Add a token output that came ``seconds`` after the start."""
        self.total, self.model = seconds, self.model + output.model_seconds
        if not self.ids:
            self.first, self.prefill_seconds = seconds, output.model_seconds
        self.ids.append(output.id)
        self.texts.append(output.text)
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        options, draw = self.options, output.draw
        if options.logprobs is not None:
            of = draw.logits if options.logprobs_of == "logits" else draw.candidates
            self.logprobs.append(of_token(of, draw.token, options.logprobs, draw.vocabulary))
        if options.watch:
            self.trace.append(output.trace)


def _collect(
    outputs: Iterator[tuple[int, TokenOutput]], task: GenerationTask, builders: list[OutputBuilder]
) -> Iterator[tuple[int, TokenOutput]]:
    """Yield the outputs, each after adding it to its builder; close the task whenever the iteration ends.

    It holds no reference to the request, so that an iterator that is dropped ends immediately.
    """
    start = time.perf_counter()
    try:
        for number, output in outputs:
            builders[number].add(output, time.perf_counter() - start)
            yield number, output
    finally:
        task.close([*task.prefill.ids, *builders[0].ids])


class RequestGroup:
    """A prompt that several sequences continue, one for each chain.

    Iterate over (sequence number, token output), then read the ``results``. Errors in the request are raised by the
    constructor.
    """

    def __init__(
        self,
        runner: ModelRunner,
        inputs: Inputs,
        prompt: PromptInput,
        options: Options,
        chains: list[Chain],
    ) -> None:
        self.options = options
        ids = inputs.prompt(prompt)  # text → tokenize → ids
        tokenizer, limit = inputs.tokenizer, inputs.answer_limit(ids, options.max_new_tokens)
        size, spare_core = inputs.vocabulary, runner.idle_core
        ends = options.ends(tokenizer, size)
        samplers = [
            chain.start(tokenizer, ids, ends, spare_core=spare_core, vocabulary=size) for chain in chains
        ]
        self.builders = [OutputBuilder(chain, options) for chain in chains]
        self.prefill = Prefill(runner, ids, options.prompt_logprobs, size)
        task = GenerationTask(
            runner,
            self.prefill,
            lambda: [TextSequence(tokenizer, options, sampler, ends, limit) for sampler in samplers],
        )
        self._outputs = _collect(pipeline.run(runner, task), task, self.builders)

    def __iter__(self) -> Iterator[tuple[int, TokenOutput]]:
        return self._outputs

    def results(self) -> list[Generation]:
        """The result of each sequence so far; ``finish_reason`` is None for a sequence that has not ended."""
        prefill = self.prefill
        return [
            Generation(
                text="".join(one.texts),
                ids=list(one.ids),
                finish_reason=one.finish_reason,
                stop_reason=one.stop_reason,
                usage=Usage(len(prefill.ids), prefill.cached_tokens, len(one.ids)),
                timings=Timings(prefill.queue, one.prefill_seconds, one.first, one.total, one.model),
                seed=None if one.chain.greedy else one.chain.seed & ((1 << SEED_BITS) - 1),
                chain=one.chain.steps,
                logprobs=None
                if self.options.logprobs is None
                else joined(one.logprobs, self.options.logprobs),
                prompt_logprobs=prefill.logprobs,
                trace=one.trace if self.options.watch else None,
            )
            for one in self.builders
        ]


class Request:
    """A request group with one sequence. Iterate over its token outputs, then read the ``result``."""

    def __init__(self, group: RequestGroup) -> None:
        self._group = group
        self._outputs = (output for _, output in group)

    def __iter__(self) -> Iterator[TokenOutput]:
        return self._outputs

    @property
    def ids(self) -> list[int]:
        """The tokens generated so far."""
        return self._group.builders[0].ids

    def result(self) -> Generation:
        """The result so far; ``finish_reason`` is None if the sequence has not ended."""
        return self._group.results()[0]
