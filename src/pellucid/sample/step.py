"""A step of the chain: what every file of ``steps/`` declares.

    @dataclass(frozen=True)
    class TopK(Step):
        name, order, kind = "top_k", 100, "cut"
        top_k: int = option(40, whole(0, 1 << 31), "Only the N most likely tokens; 0 is off.")

        idle = property(lambda self: not self.top_k)

        def apply(self, candidates, history):
            return candidates.keep_top(self.top_k)

A step is a frozen dataclass. Its fields are options: of ``generate``, of the command line, of a request; their names
are unique among all steps. ``order`` is its place in the chain where nobody says otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.sample.candidates import Candidates
from pellucid.util.registry import discover_classes, file_of

Kind = Literal["change", "forbid", "scale", "cut"]
"""What a step does: change logits, forbid tokens that must not come, scale all, cut unlikely ones off. Greedy decoding
needs the first two only."""

Check = Callable[[str, Any], Any]
"""(name, value) → the value as the step wants it. Raises InvalidRequest."""


class TokenizerProtocol(Protocol):
    """What steps need of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_special(self, token_id: int) -> bool: ...


@dataclass(frozen=True)
class RequestContext:
    """What a request tells its steps: the ``tokenizer``, the tokens that end its text, the seed, whether a core
    is ``idle`` while the model runs, and the ``vocabulary``: how many tokens the tokenizer and the model both have.
    """

    tokenizer: TokenizerProtocol
    ends: frozenset[int]
    seed: int
    idle: bool
    vocabulary: int

    @property
    def eos_ids(self) -> frozenset[int]:
        """Those of ``ends`` that the model itself ends a text with."""
        return self.ends & self.tokenizer.eos_ids


class Tally:
    """How often each of some tokens has come. Adding one more takes no longer for many."""

    def __init__(self) -> None:
        self._ids, self._counts = np.zeros(64, np.int64), np.zeros(64, np.int64)
        self._places: dict[int, int] = {}

    def add(self, tokens: Iterable[int]) -> None:
        """These have come."""
        for token in tokens:
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._ids):
                self._ids, self._counts = (
                    np.concatenate([x, np.zeros_like(x)]) for x in (self._ids, self._counts)
                )
            self._ids[place] = token
            self._counts[place] += 1

    def fork(self) -> Tally:
        """The same, to go on otherwise."""
        made = copy(self)
        made._ids, made._counts, made._places = self._ids.copy(), self._counts.copy(), dict(self._places)
        return made

    @property
    def ids(self) -> NDArray[np.int64]:
        """The tokens, in the order in which they came first."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each came."""
        return self._counts[: len(self._places)]


class TokenHistory:
    """The tokens before the one that is sampled: the prompt's and those that were generated."""

    def __init__(self, prompt: Sequence[int], seed: int = 0) -> None:
        self.prompt_length, self.seed = len(prompt), seed
        self._tallies: dict[int, tuple[Tally, int]] = {}
        self._length = len(prompt)
        self._ids = np.zeros(max(2 * len(prompt), 64), np.int64)
        self._ids[: len(prompt)] = prompt

    @property
    def ids(self) -> NDArray[np.int64]:
        """All of them, in order."""
        return self._ids[: self._length]

    @property
    def index(self) -> int:
        """The number of the token that comes, from 0."""
        return self._length - self.prompt_length

    def append(self, token: int) -> None:
        """A token was sampled."""
        if self._length == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[self._length] = token
        self._length += 1

    def tally(self, start: int, last: int = -1) -> Tally:
        """Of the tokens from a place on, if they are among the ``last`` ones (-1: all)."""
        if last >= 0 and self._length - last > start:
            found = Tally()
            found.add(self.ids[self._length - last :].tolist())
            return found
        found, upto = self._tallies.get(start) or (Tally(), start)
        found.add(self.ids[upto:].tolist())
        self._tallies[start] = found, self._length
        return found

    def fork(self) -> TokenHistory:
        """The same tokens, to go on otherwise."""
        made = copy(self)
        made._ids = self._ids.copy()
        made._tallies = {start: (tally.fork(), upto) for start, (tally, upto) in self._tallies.items()}
        return made


def last(ids: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The last ``n`` ids, or all if it is below 0."""
    return ids if n < 0 else ids[max(len(ids) - n, 0) :]


@dataclass(frozen=True)
class SamplerStep:
    """Base of all steps.

    Raises:
        InvalidRequest: when it is made, a value is of the wrong type or out of range.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    kind: ClassVar[Kind]
    alone: ClassVar[bool] = False
    """Whether it stands in for every other step that cuts."""

    def __post_init__(self) -> None:
        for one in fields(self):
            if "check" in one.metadata:
                object.__setattr__(self, one.name, one.metadata["check"](one.name, getattr(self, one.name)))

    @property
    def idle(self) -> bool:
        """Whether these values do nothing, so that the step can be left out."""
        return False

    def bind(self, context: RequestContext) -> SamplerStep:
        """The step for one request: with what it needs of the vocabulary, and a state of its own if it has one.

        Raises:
            InvalidRequest: a value does not fit the vocabulary.
        """
        return self

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        """The candidates after this step; never none."""
        raise NotImplementedError

    @property
    def complete(self) -> bool:
        """Whether the text is whole, so that no token is to follow."""
        return False

    @property
    def note(self) -> str:
        """What a trace shows of its state."""
        return ""

    @property
    def forced(self) -> Sequence[int]:
        """Tokens that must come next, whatever the logits are: they are read together."""
        return ()

    def accept(self, token: int, probability: float) -> None:
        """A token was sampled, with this probability in the end."""

    def fork(self) -> SamplerStep:
        """A copy that goes on by itself; the step if it has no state."""
        return self


def option(default: Any, check: Check, help: str, parse: Callable[[str], Any] | None = None) -> Any:
    """A field of a step. ``parse`` reads it from a command line, where it is no number."""
    return field(default=default, metadata={"check": check, "help": help, "parse": parse})


@functools.cache
def steps() -> Mapping[str, type[SamplerStep]]:
    """All steps by name, in their order.

    Raises:
        TypeError: two files have a step of one name.
    """
    found = discover_classes("pellucid.sample.steps", SamplerStep, lambda step: (step.name,)).values()
    return {one.name: one for one in sorted(found, key=lambda one: (one.order, one.name))}


@functools.cache
def owners() -> Mapping[str, type[SamplerStep]]:
    """Which step an option belongs to, in the order of the steps.

    Raises:
        TypeError: two steps share an option.
    """
    found: dict[str, type[SamplerStep]] = {}
    for one in steps().values():
        for name in options_of(one):
            if name in found:
                raise TypeError(f"{file_of(one)} and {file_of(found[name])} both have an option {name}")
            found[name] = one
    return found


def options_of(step: type[SamplerStep]) -> dict[str, Any]:
    """A step's options: name to field."""
    return {one.name: one for one in fields(step) if "check" in one.metadata}
