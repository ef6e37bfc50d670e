"""The interface of a sampler step, which every file of ``steps/`` implements.

    @dataclass(frozen=True)
    class TopK(SamplerStep):
        name, order, kind, off = "top_k", 100, "cut", 0
        top_k: int = option(40, whole(0, 1 << 31), "Only the N most likely tokens; 0 is off.")

        def apply(self, candidates, history):
            return candidates.keep_top(self.top_k)

A step is a frozen dataclass. The fields that are declared with ``option`` are options of ``generate``, of the command
line and of a request. Their names are unique among all steps. The other fields are the state of the step. ``order`` is
the default position of the step in the chain. A step whose first option has the value ``off`` has no effect.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.sample.candidates import Candidates
from pellucid.util.checks import token_id
from pellucid.util.registry import discover_classes, file_of

if TYPE_CHECKING:
    from concurrent.futures import Future

StepKind = Literal["change", "forbid", "scale", "cut"]
"""The effect of a step: "change" adjusts some logits, "forbid" rules tokens out, "scale" scales all logits, "cut" drops
unlikely tokens. Greedy decoding applies only "change" and "forbid"."""

Check = Callable[[str, Any], Any]
"""(name, value) → the value in the form that the step stores. Raises InvalidRequest."""


class TokenizerProtocol(Protocol):
    """The part of a tokenizer that steps use."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def id_of(self, token: str) -> int | None: ...

    def is_special(self, token_id: int) -> bool: ...


class RequestContext(Struct, frozen=True):
    """The facts about a request that its steps use.

    ``ends`` are the tokens that end the text. ``seed`` is the chain's seed: the request's seed in the low bits, the
    number of the sequence above them. ``spare_core`` is True if the model leaves a core idle. ``vocabulary`` is the
    number of tokens that the tokenizer and the model both have. ``limit`` is the maximum number of generated tokens.
    """

    tokenizer: TokenizerProtocol
    ends: frozenset[int]
    seed: int
    spare_core: bool
    vocabulary: int
    limit: int | None = None

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ``ends`` that are the model's own end tokens."""
        return self.ends & self.tokenizer.eos_ids


class TokenCounts:
    """Counts of tokens. Adding a token takes amortized constant time."""

    def __init__(self) -> None:
        self._ids, self._counts = np.zeros(64, np.int64), np.zeros(64, np.int64)
        self._index: dict[int, int] = {}

    def add(self, tokens: Iterable[int]) -> None:
        """Count these tokens."""
        for token in tokens:
            position = self._index.setdefault(token, len(self._index))
            if position == len(self._ids):
                self._ids, self._counts = (np.concatenate([x, np.zeros_like(x)]) for x in (self._ids, self._counts))
            self._ids[position] = token
            self._counts[position] += 1

    def fork(self) -> TokenCounts:
        """A copy that can diverge."""
        fork = copy(self)
        fork._ids, fork._counts, fork._index = self._ids.copy(), self._counts.copy(), dict(self._index)
        return fork

    @property
    def ids(self) -> NDArray[np.int64]:
        """The distinct tokens, in order of first occurrence."""
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """The count of each of ``ids``."""
        return self._counts[: len(self._index)]


class TokenHistory:
    """The tokens before the next token: the tokens of the prompt, then the generated tokens."""

    def __init__(self, prompt: Sequence[int], seed: int = 0) -> None:
        self.prompt_length, self.seed = len(prompt), seed
        self._counts: dict[int, tuple[TokenCounts, int]] = {}
        self._length = len(prompt)
        self._ids = np.zeros(max(2 * len(prompt), 64), np.int64)
        self._ids[: len(prompt)] = prompt

    @property
    def ids(self) -> NDArray[np.int64]:
        """All tokens, in order."""
        return self._ids[: self._length]

    @property
    def index(self) -> int:
        """The index of the next generated token, from 0."""
        return self._length - self.prompt_length

    def append(self, token: int) -> None:
        """Add a sampled token."""
        if self._length == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[self._length] = token
        self._length += 1

    def counts(self, start: int, window: int = -1) -> TokenCounts:
        """Counts of the tokens from index ``start`` on; only the most recent ``window`` tokens count (-1: all)."""
        if window >= 0 and self._length - window > start:
            counts = TokenCounts()
            counts.add(self.ids[self._length - window :].tolist())
            return counts
        counts, upto = self._counts.get(start) or (TokenCounts(), start)
        counts.add(self.ids[upto:].tolist())
        self._counts[start] = counts, self._length
        return counts

    def fork(self) -> TokenHistory:
        """A copy that can diverge."""
        fork = copy(self)
        fork._ids = self._ids.copy()
        fork._counts = {start: (counts.fork(), upto) for start, (counts, upto) in self._counts.items()}
        return fork


def last(ids: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The last ``n`` ids; all of them if ``n`` is negative."""
    return ids if n < 0 else ids[max(len(ids) - n, 0) :]


@dataclass(frozen=True)
class SamplerStep:
    """Base of all sampler steps.

    Raises:
        InvalidRequest: at construction, a value has the wrong type or is out of range.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    kind: ClassVar[StepKind]
    off: ClassVar[Any] = None
    """The step has no effect if its first option has this value."""
    alone: ClassVar[bool] = False
    """True if this step, when active, replaces all other steps of kind "cut" in the default chain.
    Beam search refuses such a step."""

    def __post_init__(self) -> None:
        for option in fields(self):
            if "check" in option.metadata:
                object.__setattr__(self, option.name, option.metadata["check"](option.name, getattr(self, option.name)))

    @property
    def idle(self) -> bool:
        """True if the step has no effect with these values; the chain leaves it out."""
        return self.off is not None and bool(getattr(self, fields(self)[0].name) == self.off)

    def bind(self, context: RequestContext) -> SamplerStep:
        """A copy of the step for one request. It has data about the vocabulary, and its own state if it needs state.

        Raises:
            InvalidRequest: a value does not fit the vocabulary.
        """
        return self

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        """The candidates after this step. The chain raises NothingLeft if none is possible."""
        raise NotImplementedError

    @property
    def complete(self) -> bool:
        """True if the text is complete, so that no token may follow."""
        return False

    @property
    def note(self) -> str:
        """The step's state as a trace shows it."""
        return ""

    @property
    def forced(self) -> Sequence[int]:
        """Tokens that must come next, regardless of the logits. The model runs several forced tokens in one step."""
        return ()

    @property
    def advancing(self) -> Future[None] | None:
        """The job that must end before ``complete`` is known; None if it is known."""
        return None

    @property
    def preparing(self) -> Future[None] | None:
        """The job that ``apply`` would wait for; None if no job is running."""
        return None

    def accept(self, token: int, probability: float) -> None:
        """Record a sampled token and its probability after the chain."""

    def end(self) -> None:
        """Free the resources of the step after the end of the text."""

    def fork(self) -> SamplerStep:
        """A copy that can diverge; the step itself if it has no state."""
        return self


def option(default: Any, check: Check, help: str, parse: Callable[[str], Any] | None = None) -> Any:
    """A field of a step that is an option. ``parse`` converts text from the command line if the option is no number."""
    return field(default=default, metadata={"check": check, "help": help, "parse": parse})


@functools.cache
def steps() -> Mapping[str, type[SamplerStep]]:
    """All steps by name, in the default order of the chain.

    Raises TypeError: two files declare steps of the same name.
    """
    classes = discover_classes("pellucid.sample.steps", SamplerStep, lambda step: (step.name,)).values()
    return {step.name: step for step in sorted(classes, key=lambda step: (step.order, step.name))}


@functools.cache
def owners() -> Mapping[str, type[SamplerStep]]:
    """The step that each option belongs to, by option name, in the order of the steps.

    Raises TypeError: two steps share an option.
    """
    owners: dict[str, type[SamplerStep]] = {}
    for step in steps().values():
        for name in options_of(step):
            if name in owners:
                raise TypeError(f"{file_of(step)} and {file_of(owners[name])} both have an option {name}")
            owners[name] = step
    return owners


def options_of(declaring: type[Any]) -> dict[str, Any]:
    """The options that a dataclass declares, such as a step: name → dataclass field."""
    return {option.name: option for option in fields(declaring) if "check" in option.metadata}


# Conversion of words in options to tokens of a vocabulary.


def token_sequences(context: RequestContext, name: str, entry: int | str | Sequence[int]) -> list[tuple[int, ...]]:
    """The token sequences of an entry. A text has two: its tokens at the beginning of a text, and after a space.

    Raises InvalidRequest: an id is outside the vocabulary.
    """
    if isinstance(entry, str):
        ways = (context.tokenizer.encode(text, add_special=False) for text in (entry, f" {entry}"))
        return list(dict.fromkeys(tuple(ids) for ids in ways))
    ids = (entry,) if isinstance(entry, int) else entry
    return [tuple(token_id(name, token, context.vocabulary) for token in ids)]


def single_token(context: RequestContext, name: str, entry: int | str) -> int:
    """The single token of an entry.

    Raises InvalidRequest: a text is not exactly one token, or an id is outside the vocabulary.
    """
    if not isinstance(entry, str):
        return token_sequences(context, name, entry)[0][0]
    ids = context.tokenizer.encode(entry, add_special=False)
    if len(ids) != 1:
        raise InvalidRequest(
            f"{name} holds {brief(entry)}, which is {len(ids)} tokens ({brief(ids)}): give the ids instead"
        )
    return ids[0]


def split_entries(text: str) -> list[Any]:
    """Split command line text at commas: digits become ids, other parts stay texts."""
    return [int(part) if part.strip().isdigit() else part for part in text.split(",") if part]
