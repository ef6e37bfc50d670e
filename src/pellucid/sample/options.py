"""How a text is to be generated: what users write, checked, and the chain and stopper that come of it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from pellucid.checks import real, whole
from pellucid.errors import InvalidRequest
from pellucid.messages import brief
from pellucid.sample.candidates import Step
from pellucid.sample.chain import Chain
from pellucid.sample.stop import Stopper
from pellucid.sample.temperature import Temperature
from pellucid.sample.top_k import TopK
from pellucid.sample.top_p import TopP

SEEDS = 1 << 63
MOST_STOPS, LONGEST_STOP = 64, 4096


@dataclass(frozen=True)
class Options:
    """How a text is generated.

    ``temperature`` 0 is greedy, up to 100; ``top_k`` 0 is off; ``top_p`` 1 is off; ``seed`` None draws one, which
    the result reports; ``stop`` strings end the text and are not part of it; ``max_new_tokens`` None is what the
    context leaves.

    Raises:
        InvalidRequest: a value is of the wrong type or out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    seed: int | None = None
    stop: Sequence[str] | str = ()
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "temperature": real("temperature", self.temperature, 0, 100, "0 is greedy"),
            "top_k": whole("top_k", self.top_k, 0, 1 << 31, "0 turns it off"),
            "top_p": real("top_p", self.top_p, 0, 1, "1 turns it off", above=True),
        }
        if self.seed is not None:
            checked["seed"] = whole("seed", self.seed, 0, SEEDS - 1, "leave it out to have one drawn")
        if self.max_new_tokens is not None:
            hint = "leave it out for all that the context holds"
            checked["max_new_tokens"] = whole("max_new_tokens", self.max_new_tokens, 1, 1 << 31, hint)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # frozen; and from here on a Python number
        if not isinstance(self.stop, Sequence):
            raise InvalidRequest(f"stop={brief(self.stop)}: must be a string or a list of strings")
        if len(self.stops) > MOST_STOPS:
            raise InvalidRequest(
                f"stop has {len(self.stops):,} strings; the limit is {MOST_STOPS}: give fewer"
            )
        for stop in self.stops:
            if not isinstance(stop, str) or not 0 < len(stop) <= LONGEST_STOP:
                raise InvalidRequest(
                    f"stop={brief(stop)}: must be a string of 1 to {LONGEST_STOP:,} characters"
                )

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Options by name.

        Raises:
            InvalidRequest: also for a name that is not an option; the message lists those that are.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise InvalidRequest(f"unknown option {brief(name)}; the options are {', '.join(known)}")
        return cls(**options)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def chain(self) -> Chain:
        """The chain: temperature, top-k, top-p, then the draw; or greedy."""
        if self.temperature == 0:
            return Chain(greedy=True)
        steps: list[Step] = [] if self.temperature == 1 else [Temperature(self.temperature)]
        if self.top_k:
            steps.append(TopK(self.top_k))
        if self.top_p < 1:
            steps.append(TopP(self.top_p))
        return Chain(tuple(steps), seed=secrets.randbelow(SEEDS) if self.seed is None else self.seed)

    def stopper(self) -> Stopper:
        """What watches for the stop strings."""
        return Stopper(self.stops)
