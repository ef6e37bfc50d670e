"""Results of a request: its tokens, its text, and how the text was generated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from pellucid.errors import brief
from pellucid.sample.chain import Draw, TokenTrace
from pellucid.sample.logprobs import Logprobs, TokenLogprobs
from pellucid.sample.step import SamplerStep, options_of

if TYPE_CHECKING:
    from pellucid.receipts.receipt import Receipt
    from pellucid.sample.beams import Node


class TokenOutput(Struct, frozen=True):
    """One sampled token, and the text that it completes. ``held`` is text held back because it may begin a stop string.

    ``model_seconds`` is the duration of the steps that computed its logits: all steps of the prompt for the first
    token, and 0 for further tokens of the same step.

    The last token has the ``finish_reason`` "stop" (an end token, a stop string, or a complete constraint), "length"
    (the requested number of tokens or the end of the context), "time", or "until" (the request's ``until`` function).
    Earlier tokens have None. ``stop_reason`` is the end token or the stop string, if any. With the reason "probe", the
    score of a linear probe is above its limit, ``stop_reason`` is the probe's name, and the token's text is left out.

    ``probability`` is the token's probability after the sampler chain, or 1 if no step of the chain depends on it.
    ``pages`` is the sequence's number of pages in the cache. ``probe_scores`` are the scores of linear probes at the
    position that predicts the token. Unless the options request them, ``logprobs``, ``trace`` and ``probe_scores`` are
    None and ``pages`` is 0. ``draw`` holds the logits of the token. It is None in outputs that wait in a queue, because
    slow readers would keep the logits in memory. ``sequence`` is the number of the token's sequence in its request.
    ``digest`` is the SHA-256 of the logits if the options request a receipt, else None.
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
    draw: Draw | None = None
    sequence: int = 0
    digest: bytes | None = None
    probe_scores: dict[str, float] | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts of a request.

    ``cached_tokens`` counts the prompt tokens that came from the prefix cache. ``proposed_tokens`` and
    ``accepted_tokens`` count all draft tokens and the accepted draft tokens (``engine/speculation.py``).
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    proposed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Durations in seconds.

    ``queue`` is the time until the request's first step. ``prefill`` is the time of the steps that read the prompt.
    ``first_token`` and ``total`` are the times from the start to the first and to the last token. ``model`` is the part
    of ``total`` that was spent in steps. A step's time includes its wait for other steps.
    """

    queue: float
    prefill: float
    first_token: float
    total: float
    model: float


@dataclass(frozen=True, repr=False)
class Generation:
    """The result of a request.

    ``finish_reason`` is "stop" (an end token, a stop string, or a complete constraint), "length" (``max_new_tokens`` or
    the end of the context), "time", "until", "probe" (a linear probe), or None if the generation has not ended.
    ``stop_reason`` is the end token, the stop string or the name of the probe, if any. ``ids`` are the sampled tokens,
    including an end token. ``seed`` is None for greedy decoding. ``chain`` lists the sampler steps that had an effect.
    ``prompt_logprobs`` has all prompt tokens except the first. ``probe_scores`` has the scores of each linear probe, by
    name, with a number for each generated token. ``logprobs``, ``prompt_logprobs``, ``trace``, ``receipt`` and
    ``probe_scores`` are None unless the options request them. A generation that has not ended has no receipt.
    """

    text: str
    ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None
    usage: Usage
    timings: Timings
    seed: int | None
    chain: Sequence[SamplerStep] = ()
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    trace: Sequence[TokenTrace] | None = field(default=None, repr=False)
    receipt: Receipt | None = field(default=None, repr=False)
    probe_scores: Mapping[str, list[float]] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"Generation({brief(self.text)}, {self.usage.prompt_tokens:,} + {len(self.ids):,} tokens, "
            f"finish_reason={self.finish_reason!r}, {self.tokens_per_second:.1f} tokens/s)"
        )

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens per second after the first token."""
        return (len(self.ids) - 1) / max(self.timings.total - self.timings.first_token, 1e-9)

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of the tokens, in nats; minus infinity if log-probabilities were not requested."""
        return -math.inf if not self.logprobs else self.logprobs.total / len(self.logprobs)

    def as_dict(self) -> dict[str, Any]:
        """The result for JSON: dictionaries, lists and numbers."""
        return {
            "text": self.text,
            "ids": self.ids,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "usage": asdict(self.usage),
            "timings": {**asdict(self.timings), "tokens_per_second": self.tokens_per_second},
            "seed": self.seed,
            "chain": [{"name": step.name, **step_options(step)} for step in self.chain],
            "logprobs": None if self.logprobs is None else logprobs_as_dict(self.logprobs),
            "prompt_logprobs": None if self.prompt_logprobs is None else logprobs_as_dict(self.prompt_logprobs),
            "trace": None if self.trace is None else [asdict(token) for token in self.trace],
            "receipt": None if self.receipt is None else self.receipt.as_dict(),
            "probe_scores": None if self.probe_scores is None else dict(self.probe_scores),
        }


@dataclass(frozen=True)
class Score:
    """The log-probabilities of a given text. ``ids`` are all tokens of the text.

    ``logprobs`` are the log-probabilities of the scored tokens, which are the last tokens of the text.
    """

    ids: list[int]
    logprobs: Logprobs

    @property
    def total(self) -> float:
        """The sum of the log-probabilities of the scored tokens, in nats."""
        return self.logprobs.total

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a scored token."""
        return math.exp(-self.total / len(self.logprobs))

    def as_dict(self) -> dict[str, Any]:
        """The score for JSON."""
        logprobs = logprobs_as_dict(self.logprobs)
        numbers = {"total": self.total, "perplexity": self.perplexity}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {"ids": self.ids, **finite, "logprobs": logprobs}


@dataclass(frozen=True)
class BeamText:
    """One of the best texts of a beam search.

    ``score`` includes the length penalty. ``node`` is the id of the text's last node in the tree.
    """

    text: str
    ids: list[int]
    score: float
    finish_reason: str
    node: int


@dataclass(frozen=True)
class Beams:
    """The result of a beam search: ``texts``, best first, and the ``tree`` of all candidates considered."""

    texts: list[BeamText]
    tree: list[Node] = field(repr=False)
    usage: Usage
    timings: Timings
    seed: int | None
    chain: Sequence[SamplerStep] = ()

    @property
    def text(self) -> str:
        """The best text."""
        return self.texts[0].text

    @property
    def longest(self) -> int:
        """The number of tokens of the longest candidate."""
        return max(node.step for node in self.tree) + 1

    def as_dict(self) -> dict[str, Any]:
        """The result for JSON."""
        return {
            "texts": [asdict(one) for one in self.texts],
            "usage": asdict(self.usage),
            "timings": asdict(self.timings),
            "seed": self.seed,
            "chain": [{"name": step.name, **step_options(step)} for step in self.chain],
            "tree": [asdict(node) for node in self.tree],
        }


def step_options(step: SamplerStep) -> dict[str, Any]:
    """A sampler step's options and their values."""
    return {name: _to_json(getattr(step, name)) for name in options_of(type(step))}


def logprobs_as_dict(logprobs: Logprobs) -> dict[str, Any]:
    """Log-probabilities for JSON. JSON has no infinity: None stands for a token with probability 0."""
    return {
        "ids": logprobs.ids.tolist(),
        "chosen": _finite(logprobs.chosen),
        "ranks": logprobs.ranks.tolist(),
        "top": [
            [{"id": token, "logprob": value} for token, value in zip(ids, _finite(row)) if token >= 0]
            for ids, row in zip(logprobs.top_ids.tolist(), logprobs.top)
        ],
        **({} if logprobs.final is None else {"final": [_finite(row) for row in logprobs.final]}),
    }


def _finite(values: Any) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(one) for one in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return brief(value) if not isinstance(value, float) else value if np.isfinite(value) else None
