"""Texts that are generated together: their collected tokens and their results, wherever the model runs."""

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
from pellucid.sample.token_trace import TokenTrace


class MadeToken(Struct, frozen=True):
    """A token with the fields that responses report. Builders collect these tokens, and streams yield them.

    ``logprobs`` and ``trace`` are None unless the options request them.

    ``probability`` is the token's probability after the chain, if a step of the chain depends on it (else 1).
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
        """Convert an output, with the fields that the options request."""
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
    """Facts about a prompt after its prefill.

    ``cached`` is the number of tokens from the prefix cache, ``queue`` the seconds until the first step. ``logprobs``
    is None if log-probabilities were not requested.
    """

    cached: int = 0
    queue: float = 0.0
    logprobs: Logprobs | None = None


class CachedPrompt(Protocol):
    """A prompt. ``cached`` is its number of tokens from the prefix cache (None before its first step)."""

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
        """Number of prompt tokens that came from the prefix cache."""
        return (self.prompt.cached or 0) if self.prompt else 0

    @property
    def ended(self) -> bool:
        """True if the last token has arrived."""
        return self.finish_reason is not None

    def add(self, token: MadeToken, seconds: float) -> MadeToken:
        """Add a token that arrived ``seconds`` after the start. The request's ``until`` function may end the text."""
        until = self.options.until
        if until and token.finish_reason != "stop" and until("".join(self.texts) + token.text + token.held):
            token = replace(token, text=token.text + token.held, finish_reason="until", held="")
        self.keep(token, seconds)
        return token

    def keep(self, token: MadeToken, seconds: float) -> None:
        """Add a token that arrived ``seconds`` after the start, without a call of ``until``."""
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
    """A prompt that several sequences continue, one for each chain. ``builders`` collect the tokens.

    Call ``start``, then ``wait`` or ``finished``; or iterate over ``stream``. Then read the ``results``.
    """

    options: Options
    builders: list[OutputBuilder]
    watching: Watching | None = None
    """The traces and edits of the request."""

    resumable = False
    """True if another server can take over the request, by the name that ``named`` sets."""

    def named(self, name: str, joins: bool) -> None:  # noqa: B027 - most have no use for a name
        """Set the name that identifies the request on every server. If it ``joins``, it may be running already.

        Without a seed in its options the request draws with a seed that is derived from the name.
        """

    @property
    @abstractmethod
    def prompt(self) -> list[int]:
        """The tokens of the prompt."""

    @property
    @abstractmethod
    def facts(self) -> PromptFacts:
        """Facts about the prompt so far."""

    @property
    def prompt_read(self) -> int | None:
        """Number of the prompt's tokens that are read or cached; None while the number is unknown."""
        return len(self.prompt) if any(one.ids for one in self.builders) else None

    @property
    @abstractmethod
    def speculation(self) -> list[tuple[int, int]]:
        """Number of draft tokens and number of accepted draft tokens, for each sequence."""

    @abstractmethod
    def start(self) -> None:
        """Start the request."""

    @abstractmethod
    def wait(self) -> None:
        """Block the thread until the request has ended. Runs the request if it has not been started."""

    @abstractmethod
    async def finished(self) -> None:
        """Wait in an event loop until the started request has ended. Cancelling the wait cancels the request."""

    @abstractmethod
    def stream(self) -> AsyncGenerator[tuple[int, MadeToken], None]:
        """Start the request, and yield (sequence number, token). Raises QueueFull in this call.

        ``builders`` may be ahead of the yielded token, because several tokens may arrive together.
        """

    @abstractmethod
    def close(self) -> None:
        """Cancel the request."""

    def unused(self) -> list[str]:
        """Sentences about edits at positions that the texts did not reach before they ended."""
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
    """Run request groups together until all have ended. An error in one group cancels the others and is raised."""
    with ExitStack() as stack:
        for group in groups:
            stack.enter_context(closing(group)).start()
        for group in groups:
            group.wait()
