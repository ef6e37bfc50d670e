"""What is collected of texts that are generated together, and their results, wherever the model runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, closing
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from pellucid.engine.output import Generation, Timings, Usage
from pellucid.engine.probe import Watching
from pellucid.engine.sequence import TokenOutput
from pellucid.sample.chain import SEED_BITS, Chain
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined, of_token
from pellucid.sample.options import Options
from pellucid.sample.trace import TokenTrace


class MadeToken(Struct, frozen=True):
    """A token with all that an answer says of it: builders keep these, streams yield them.

    ``logprobs`` and ``trace`` are None unless the options request them.

    ``probability`` is the token's after the chain, where a step of the chain goes on from it (else 1).
    """

    id: int
    text: str
    model_seconds: float
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    held: str = ""
    pages: int = 0
    probability: float = 1.0
    logprobs: TokenLogprobs | None = None
    trace: TokenTrace | None = None

    @classmethod
    def of(cls, output: TokenOutput, options: Options) -> MadeToken:
        """What the options keep of an output."""
        draw, logprobs = output.draw, None
        if options.logprobs is not None:
            of = draw.logits if options.logprobs_of == "logits" else draw.candidates
            logprobs = of_token(of, draw.token, options.logprobs, draw.vocabulary)
        trace = output.trace if options.watch else None
        return cls(
            output.id,
            output.text,
            output.model_seconds,
            output.finish_reason,
            output.stop_reason,
            output.held,
            output.pages,
            draw.probability,
            logprobs,
            trace,
        )


class PromptFacts(Struct, frozen=True):
    """What is known of a prompt that was read: how many of its tokens were cached, how many seconds it waited, its
    log-probabilities if they were requested.
    """

    cached: int = 0
    queue: float = 0.0
    logprobs: Logprobs | None = None


class CachedPrompt(Protocol):
    """A prompt that is read; ``cached`` tokens of it came from the prefix cache (None: it has not been looked for)."""

    @property
    def cached(self) -> int | None: ...


class OutputBuilder:
    """Collects the tokens of one sequence."""

    def __init__(self, chain: Chain, options: Options) -> None:
        self.chain, self.options = chain, options
        self.ids: list[int] = []
        self.times: list[float] = []  # seconds from the start to each token
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.trace: list[TokenTrace] = []
        self.held: list[str] = []
        self.pages: list[int] = []
        self.prompt: CachedPrompt | None = None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.prefill_seconds = self.first = self.total = self.model = 0.0

    @property
    def cached(self) -> int:
        """How many tokens of the prompt came from the prefix cache."""
        return (self.prompt.cached or 0) if self.prompt else 0

    @property
    def ended(self) -> bool:
        """Whether the last token has come."""
        return self.finish_reason is not None

    def add(self, token: MadeToken, seconds: float) -> MadeToken:
        """Keep a token that came ``seconds`` after the start. The request's own function may make it the last."""
        until = self.options.until
        if until and token.finish_reason != "stop" and until("".join(self.texts) + token.text + token.held):
            token = replace(token, text=token.text + token.held, finish_reason="until", held="")
        self.keep(token, seconds)
        return token

    def keep(self, token: MadeToken, seconds: float) -> None:
        """Keep a token that came ``seconds`` after the start."""
        self.total, self.model = seconds, self.model + token.model_seconds
        if not self.ids:
            self.first, self.prefill_seconds = seconds, token.model_seconds
        self.ids.append(token.id)
        self.times.append(seconds)
        self.texts.append(token.text)
        self.finish_reason, self.stop_reason = token.finish_reason, token.stop_reason
        if token.logprobs is not None:
            self.logprobs.append(token.logprobs)
        if token.trace is not None:
            self.trace.append(token.trace)
            self.held.append(token.held)
            self.pages.append(token.pages)


class TextGroup(ABC):
    """A prompt that several sequences continue, one for each chain: ``builders`` collect what comes.

    ``start`` it and wait until it has ``finished``, or read its ``stream``; then read the ``results``.
    """

    options: Options
    builders: list[OutputBuilder]
    watching: Watching | None = None
    """The traces and edits of the request."""

    resumable = False
    """Whether another server can take it over: ``named`` says by what name."""

    def named(self, name: str, joins: bool) -> None:  # noqa: B027 - most have no use for a name
        """Give it a name, by which it is known wherever it runs. If it ``joins``, it may run already.

        What was not asked to be drawn with a seed is drawn with one that the name makes.
        """

    @property
    @abstractmethod
    def prompt(self) -> list[int]:
        """The tokens of the prompt."""

    @property
    @abstractmethod
    def facts(self) -> PromptFacts:
        """What is known of the prompt so far."""

    @property
    def prompt_read(self) -> int | None:
        """The number of the prompt's tokens that are read or cached; None while it is unknown."""
        return len(self.prompt) if any(one.ids for one in self.builders) else None

    @property
    @abstractmethod
    def speculation(self) -> list[tuple[int, int]]:
        """Of each sequence, how many tokens were proposed, and how many of them were kept."""

    @abstractmethod
    def start(self) -> None:
        """Start it."""

    @abstractmethod
    def wait(self) -> None:
        """Wait in a thread until it has ended, or let it run if it has not been started."""

    @abstractmethod
    async def finished(self) -> None:
        """Wait in an event loop until it has ended; it must have been started. Cancelling this ends it."""

    @abstractmethod
    def stream(self) -> AsyncGenerator[tuple[int, MadeToken], None]:
        """Start it, and yield (sequence number, token). A full queue is reported by this call.

        ``builders`` may be ahead of the token that is yielded: several may come at a time.
        """

    @abstractmethod
    def close(self) -> None:
        """End it."""

    def unused(self) -> list[str]:
        """Sentences about edits that the texts, which have ended, did not reach."""
        if self.watching is None:
            return []
        made = max((len(one.ids) for one in self.builders), default=0)
        return self.watching.unused(len(self.prompt) + max(made - 1, 0))

    def results(self) -> list[Generation]:
        """The result of each sequence so far; ``finish_reason`` is None for a sequence that has not ended."""
        prompt, facts = self.prompt, self.facts
        speculation = self.speculation or [(0, 0)] * len(self.builders)
        return [
            Generation(
                text="".join(one.texts),
                ids=list(one.ids),
                finish_reason=one.finish_reason,
                stop_reason=one.stop_reason,
                usage=Usage(len(prompt), facts.cached, len(one.ids), proposed, accepted),
                timings=Timings(facts.queue, one.prefill_seconds, one.first, one.total, one.model),
                seed=None if one.chain.greedy else one.chain.seed & ((1 << SEED_BITS) - 1),
                chain=one.chain.steps,
                logprobs=None
                if self.options.logprobs is None
                else joined(one.logprobs, self.options.logprobs),
                prompt_logprobs=facts.logprobs,
                trace=one.trace if self.options.watch else None,
            )
            for one, (proposed, accepted) in zip(self.builders, speculation)
        ]


def run_together(groups: Sequence[TextGroup]) -> None:
    """Run request groups in the same steps, to their ends. An error of one, which is raised, ends the others."""
    with ExitStack() as stack:
        for group in groups:
            stack.enter_context(closing(group)).start()
        for group in groups:
            group.wait()
