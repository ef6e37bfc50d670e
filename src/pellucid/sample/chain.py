"""The chain: sampler steps in order, then softmax, then a draw. Greedy decoding takes the most likely token instead.

``Chain`` is the configuration of a request. ``Sampler`` is a chain bound to one sequence, with its history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import KernelError, NothingLeft
from pellucid.sample.candidates import DAMAGED, Candidates
from pellucid.sample.logprobs import StepTrace, compare, of_token
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, TokenizerProtocol
from pellucid.util.probabilities import exponentials

if TYPE_CHECKING:
    from concurrent.futures import Future

# Random numbers that depend only on the seed and the token's index: counter-based (Philox; Salmon et al. 2011).
#
# For each seed and token index the generator gives a block of four random numbers. The draw uses the number at index
# ``DRAW`` of the block, and the XTC step the number at index ``XTC``. So a step that needs a random number does not
# change the random numbers of other steps.
#
# The generator is Philox 4x64 with ten rounds, as in NumPy. For a single number, this Python code takes a tenth of the
# time of constructing NumPy's generator.

DRAW, XTC = 0, 1

_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_INCREMENTS = (
    0x9E3779B97F4A7C15,
    0xBB67AE8584CAA73B,
)  # increments of the key per round: the golden ratio, and the square root of 3 minus 1
_WORD = (1 << 64) - 1
ROUNDS = 10


def uniform(seed: int, index: int, which: int = DRAW) -> float:
    """The random number in [0, 1) for token ``index``. ``seed`` is below 2**128, ``index`` below 2**64 - 1."""
    a, b, c, d = index + 1, 0, 0, 0  # NumPy increments the counter before the first block
    key, other = seed & _WORD, seed >> 64
    for _ in range(ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (second >> 64) ^ b ^ key, second & _WORD, (first >> 64) ^ d ^ other, first & _WORD
        key, other = (key + _KEY_INCREMENTS[0]) & _WORD, (other + _KEY_INCREMENTS[1]) & _WORD
    return ((a, b, c, d)[which] >> 11) * 2.0**-53


# Number of bits of a request's seed. The bits above them hold the number of the sequence in its request.
SEED_BITS = 64


@dataclass(frozen=True)
class Draw:
    """One sampled token, and the record of its choice.

    ``logits`` are the model's logits. Only the first ``vocabulary`` logits belong to tokens. ``candidates`` are the
    candidates after the chain, and ``position`` is the position of the token among the candidates. ``number`` is the
    random number, or None if decoding is greedy. ``traces`` are the effects of the steps, or None without ``watch``.
    ``probability`` is the token's probability after the chain if a step needs it, else 1.
    """

    token: int
    logits: Candidates
    candidates: Candidates
    position: int
    number: float | None
    vocabulary: int
    traces: tuple[StepTrace, ...] | None = None
    probability: float = 1.0

    def final_log_probabilities(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log-probabilities of tokens after the chain; minus infinity for tokens that the chain removed."""
        found, left = np.full(len(ids), -np.inf), self.candidates.has(ids)
        found[left] = self.candidates.log_probabilities(self.candidates.positions(ids[left]))
        return found


@dataclass(frozen=True)
class Chain:
    """``steps`` in order, then a draw; ``greedy`` takes the most likely token instead (the lowest id on ties)."""

    steps: tuple[SamplerStep, ...] = ()
    greedy: bool = False
    seed: int = 0

    def _repr_html_(self) -> str:
        """The steps as a table, in order."""
        from dataclasses import fields

        from pellucid.util.display import table

        def options(step: SamplerStep) -> str:
            return ", ".join(f"{option.name}={getattr(step, option.name)}" for option in fields(step))

        rows = [[step.name, step.kind, options(step)] for step in self.steps]
        draw = "the likeliest" if self.greedy else f"a draw with seed {self.seed}"
        return table(["step", "kind", "options"], [*rows, [draw, "", ""]], "the chain")

    def without_drawing(self) -> Chain:
        """The greedy form of this chain: only the steps that change logits or forbid tokens."""
        return Chain(tuple(step for step in self.steps if step.kind in ("change", "forbid")), greedy=True)

    def with_seeds(self, count: int) -> list[Chain]:
        """``count`` chains with independent random numbers; the first chain equals this chain."""
        return [replace(self, seed=self.seed + (number << SEED_BITS)) for number in range(count)]

    def start(
        self,
        tokenizer: TokenizerProtocol,
        prompt: Sequence[int],
        ends: frozenset[int] = frozenset(),
        *,
        spare_core: bool = False,
        vocabulary: int | None = None,
        limit: int | None = None,
    ) -> Sampler:
        """Bind the chain to the continuation of a prompt.

        ``ends`` are the tokens that end the text. ``spare_core`` is True if the model leaves a core idle. Only ids
        below ``vocabulary`` (by default the tokenizer's) can be sampled. ``limit`` is the maximum number of tokens.

        Raises:
            InvalidRequest: a step's value does not fit the vocabulary.
        """
        size = tokenizer.vocab_size if vocabulary is None else vocabulary
        context = RequestContext(tokenizer, ends, self.seed, spare_core, size, limit)
        steps = tuple(step.bind(context) for step in self.steps)
        return Sampler(steps, self.greedy, TokenHistory(prompt, self.seed), size)


class Sampler:
    """A chain bound to one sequence. ``sample`` returns a token, and appends it to the history.

    A model may have more logits than there are tokens, because matrices are padded. The extra logits count in the
    model's distribution, as in transformers and llama.cpp. They are never drawn, because the chain starts without them.
    """

    def __init__(self, steps: tuple[SamplerStep, ...], greedy: bool, history: TokenHistory, vocabulary: int) -> None:
        self.steps, self.greedy, self.history, self.vocabulary = steps, greedy, history, vocabulary
        self._observers = [step for step in steps if type(step).accept is not SamplerStep.accept]
        self._workers = [step for step in steps if type(step).preparing is not SamplerStep.preparing]

    def sample(self, logits: NDArray[np.floating[Any]], *, watch: bool = False) -> Draw:
        """Sample the next token from ``logits`` (V,) float32. ``watch`` records the effect of each step.

        Raises KernelError: a logit is NaN or plus infinity, or all are minus infinity: there is no distribution. Raises
        NothingLeft: the steps forbid every token.
        """
        first = Candidates.of(logits, f"token {self.history.index}")
        tokens = self.without_padding(first)
        remaining, traces = self.apply_steps(tokens, watch=watch)
        if traces is not None and tokens is not first:
            traces = (compare("vocabulary", first, tokens), *traces)
        if self.greedy:
            position, number = remaining.best, None
        else:
            number = uniform(self.history.seed, self.history.index)
            position = remaining.draw(number)
        token, probability = remaining.id_at(position), 1.0
        if self._observers:
            probability = math.exp(remaining.log_probabilities(np.array([position]))[0])
        self.accept(token, probability)
        return Draw(token, first, remaining, position, number, self.vocabulary, traces, probability)

    def without_padding(self, logits: Candidates) -> Candidates:
        """The part of a model's logits that belongs to tokens.

        Raises KernelError: all logits of tokens are minus infinity.
        """
        remaining = logits.first(self.vocabulary)
        if not remaining.possible:
            raise KernelError(f"token {self.history.index}: no token has a finite logit: {DAMAGED}")
        return remaining

    def accept(self, token: int, probability: float = 1.0) -> None:
        """Append a token with its ``probability`` after the chain, and let the steps record it."""
        for step in self._observers:
            step.accept(token, probability)
        self.history.append(token)

    def apply_steps(
        self, candidates: Candidates, *, watch: bool = False
    ) -> tuple[Candidates, tuple[StepTrace, ...] | None]:
        """The candidates after all steps, and with ``watch`` the effect of each step.

        Raises NothingLeft: the steps forbid every token.
        """
        traces = []
        for step in self.steps:
            before, candidates = candidates, step.apply(candidates, self.history)
            if candidates is not before and not candidates.possible:
                raise NothingLeft(f"token {self.history.index}: {step.name} forbids every token: relax a constraint")
            if watch:
                traces.append(compare(step.name, before, candidates, step.note))
        return candidates, tuple(traces) if watch else None

    @property
    def complete(self) -> bool:
        """True if a step reports that the text is complete."""
        return any(step.complete for step in self.steps)

    @property
    def forced(self) -> list[int]:
        """Tokens that must come next, regardless of the logits."""
        return next((list(step.forced) for step in self.steps if step.forced), [])

    @property
    def advancing(self) -> Future[None] | None:
        """The job that must end before ``complete`` is known; None if it is known."""
        return next((job for step in self._workers if (job := step.advancing)), None)

    @property
    def preparing(self) -> Future[None] | None:
        """The job that must end before the next token can be sampled; None if no job is running."""
        return next((job for step in self._workers if (job := step.preparing)), None)

    def end(self) -> None:
        """Free the resources of the steps after the end of the text."""
        for step in self.steps:
            step.end()

    def fork(self) -> Sampler:
        """A copy that can diverge."""
        steps = tuple(step.fork() for step in self.steps)
        return Sampler(steps, self.greedy, self.history.fork(), self.vocabulary)


@dataclass(frozen=True)
class TokenTrace:
    """The choice of a token: the effects of the chain's ``steps``, and the random ``number`` (None: greedy).

    ``entropy`` is the entropy of the model's distribution in nats. ``probability`` and ``rank`` (1 is the most likely)
    are the token's values in the model's distribution, ``final_probability`` and ``final_rank`` its values after the
    chain.
    """

    token: int
    entropy: float
    probability: float
    rank: int
    steps: tuple[StepTrace, ...]
    final_probability: float
    final_rank: int
    number: float | None


def of_draw(draw: Draw) -> TokenTrace:
    """The trace of one draw of a sampler."""
    before = of_token(draw.logits, draw.token, 0, draw.vocabulary)
    after = of_token(draw.candidates, draw.token, 0, draw.vocabulary)
    return TokenTrace(
        draw.token,
        draw.logits.sums.entropy,
        math.exp(before.chosen),
        before.rank,
        draw.traces or (),
        math.exp(after.chosen),
        after.rank,
        draw.number,
    )


def likeliest(draw: Draw, top: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The ``top`` most likely tokens and the chosen token: ids, and probabilities in the model and after the chain."""
    ids = draw.logits.first(draw.vocabulary).top(top).tolist()
    ids = np.array(ids if draw.token in ids else [*ids, draw.token])
    return (ids, exponentials(draw.logits.log_probabilities(ids)), exponentials(draw.final_log_probabilities(ids)))
