"""The decoder that runs the steps of a ``tokenizer.json``, in the order of the file.

In: the names of ids. Out: text, as Hugging Face ``tokenizers`` decodes it, with one exception. Only bytes that are not
UTF-8 become U+FFFD, as in ``decode.py``. ``tokenizers`` also replaces the valid bytes next to invalid bytes, so a
stream would have to hold back valid bytes.

In most files, the steps for single tokens come first, then a byte step, ``Fuse``, and the steps for the whole text. In
these files the bytes of an id depend on the id alone, so they are cached. For other files, all steps run for each id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile

from pellucid.tokenize.stages.decode import Decoder, IdStream, TextStream, UTF8Stream, flushed
from pellucid.tokenize.stages.decode_steps import (
    ByteFallbackStep,
    ByteLevelStep,
    FuseStep,
    GroupStep,
    Step,
    TokenStep,
    alphabet_bytes,
    byte_of,
)


class _Tokens:
    """Runs a step on tokens that arrive one at a time."""

    def __init__(self, step: Step) -> None:
        self._step, self._waiting, self._first = step, list[str](), True

    def push(self, tokens: Iterable[str]) -> list[str]:
        self._waiting += tokens
        step = self._step
        count = (
            len(self._waiting) - step.looks_ahead
            if isinstance(step, TokenStep)
            else step.settled(self._waiting)
        )
        return self._run(max(count, 0), False)

    def flush(self) -> list[str]:
        return self._run(len(self._waiting), True)

    def _run(self, count: int, ends: bool) -> list[str]:
        some, self._waiting = self._waiting[:count], self._waiting[count:]
        if isinstance(self._step, GroupStep):
            return self._step(some)
        tokens = [
            self._step(token, self._first and not at, ends and at == count - 1)
            for at, token in enumerate(some)
        ]
        self._first = self._first and not some
        return tokens


class _StepStream:
    """Runs all steps of a decoder on ids that arrive one at a time."""

    def __init__(self, names: Sequence[str], steps: Sequence[Step]) -> None:
        joins = (at for at, step in enumerate(steps) if isinstance(step, FuseStep | ByteLevelStep))
        join = next(joins, len(steps))
        self._names, self._tokens = names, [_Tokens(step) for step in steps[:join]]
        self._bytes = join < len(steps) and isinstance(steps[join], ByteLevelStep)
        self._utf8, self._text = UTF8Stream(), [step.of_text() for step in steps[join + 1 :]]

    def push(self, token_id: int) -> str:
        tokens = [self._names[token_id]]
        for step in self._tokens:
            tokens = step.push(tokens)
        text = self._joined(tokens)
        for change in self._text:
            text = change.push(text)
        return text

    def flush(self) -> str:
        tokens = list[str]()
        for step in self._tokens:
            tokens = [*step.push(tokens), *step.flush()]
        return flushed(self._joined(tokens) + self._utf8.flush(), self._text)

    def _joined(self, tokens: Sequence[str]) -> str:
        return self._utf8.push(b"".join(map(alphabet_bytes, tokens))) if self._bytes else "".join(tokens)


class StepDecoder(Decoder):
    """Runs the steps of a decoder on ids; ``names`` has the name of each id.

    ``verbatim`` has the ids whose names are plain text, ``absent`` the ids without text.
    """

    def __init__(
        self,
        names: Sequence[str],
        steps: Sequence[Step],
        verbatim: Collection[int] = (),
        absent: Iterable[int] = (),
    ) -> None:
        self._names, self._steps, self._verbatim = names, tuple(steps), verbatim
        self.absent = frozenset(absent)
        self._by_token = [step for step in takewhile(_is_alone, steps) if isinstance(step, TokenStep)]
        rest = [*steps[len(self._by_token) :]]
        self._has_bytes = rest[:1] == [ByteFallbackStep()] and rest[1:2] in ([], [FuseStep()])
        rest = rest[self._has_bytes :]
        self._spells = rest[:1] == [ByteLevelStep()]
        self.is_table = not rest or self._spells or rest[0] == FuseStep()
        self._by_text = rest[1:]
        self._known = dict[int, bytes]()

    def piece(self, token_id: int, first: bool) -> bytes:
        if first:
            return self._piece(token_id, True)
        data = self._known.get(token_id)
        if data is None:
            data = self._known[token_id] = self._piece(token_id, False)
        return data

    def _piece(self, token_id: int, first: bool) -> bytes:
        token = self._names[token_id]
        if token_id in self._verbatim or token_id in self.absent:
            return token.encode() if token_id in self._verbatim else b""
        if not self.is_table:
            return self._alone(token).encode()
        for step in self._by_token:
            token = step(token, first, False)
        if self._spells:
            return alphabet_bytes(token)
        value = byte_of(token) if self._has_bytes and len(token) == 6 else None
        return token.encode() if value is None else bytes([value])

    def _alone(self, token: str) -> str:
        """The text of a token by itself, as neither the first nor the last token."""
        tokens = [token]
        for step in self._steps:
            tokens = (
                [step(part, False, False) for part in tokens] if isinstance(step, TokenStep) else step(tokens)
            )
        return "".join(tokens)

    def steps(self) -> list[TextStream]:
        return [step.of_text() for step in self._by_text]

    def stream(self) -> IdStream:
        return super().stream() if self.is_table else _StepStream(self._names, self._steps)


def _is_alone(step: Step) -> bool:
    """True if a step changes each token by itself and does not depend on the next token."""
    return isinstance(step, TokenStep) and not step.looks_ahead
