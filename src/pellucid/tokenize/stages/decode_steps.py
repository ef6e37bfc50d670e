"""The steps of a ``tokenizer.json``'s decoder, and the decoder that runs them in the order of the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

from pellucid.tokenize.stages.decode import ByteStream, Decoder, TextStream, UTF8Stream, byte_alphabet

if TYPE_CHECKING:
    from pellucid.tokenize.stages.normalize import Replace

# A step turns a list of tokens into another list. A token step changes each token by itself. Its result may depend on
# whether the token is the first or the last. A group step joins tokens. ``Fuse`` and ``ByteLevel`` join all tokens into
# one token, which is the text. This token arrives in parts if the ids arrive one at a time. The semantics follow
# Hugging Face ``tokenizers``, ``decoders``.

_BYTE = re.compile("<0x([0-9A-Fa-f]{2}|\\+[0-9A-Fa-f])>")  # Rust also reads "+A" as a number


class TokenStep(Struct, frozen=True):
    """Changes each token by itself. ``looks_ahead`` is True if the step depends on ``last``."""

    looks_ahead: ClassVar[bool] = False

    def __call__(self, token: str, first: bool, last: bool) -> str:
        raise NotImplementedError

    def of_text(self) -> TextStream:
        """A new step for a text that is one token and arrives in parts."""
        return _AtTheEnd(lambda text: self(text, True, True))


class ReplaceStep(TokenStep, frozen=True):
    """Replaces matches in a token."""

    change: Replace

    def of_text(self) -> TextStream:
        letter = not self.change.is_pattern and len(self.change.old) == 1
        return _ByLetters(self) if letter else super().of_text()

    def __call__(self, token: str, first: bool, last: bool) -> str:
        change = self.change
        if not change.is_pattern and len(change.new) <= len(change.old):  # the text does not grow
            return token.replace(change.old, change.new) if change.old else token
        return change(token)


class StripStep(TokenStep, frozen=True):
    """Removes up to ``start`` characters ``content`` at the start of a token, and up to ``stop`` at its end."""

    content: str
    start: int
    stop: int

    def __call__(self, token: str, first: bool, last: bool) -> str:
        stream = self.of_text()
        return stream.push(token) + stream.flush()

    def of_text(self) -> TextStream:
        return _Strip(self)


class MetaspaceStep(TokenStep, frozen=True):
    """Replaces ``space`` by a space. With ``prefixed``, the first token loses ``space``, which encoding inserted."""

    space: str
    prefixed: bool

    def of_text(self) -> TextStream:
        return _ByLetters(self)

    def __call__(self, token: str, first: bool, last: bool) -> str:
        return token.replace(self.space, "" if first and self.prefixed else " ")


class JoinStep(TokenStep, frozen=True):
    """Puts ``between`` before each token but the first."""

    between: str

    def __call__(self, token: str, first: bool, last: bool) -> str:
        return token if first else self.between + token


CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"),
    (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""The replacements of the clean-up: spaces before punctuation and English contractions (``decoders/wordpiece.rs``)."""


def _cleaned(token: str) -> str:
    for old, new in CLEANED:
        token = token.replace(old, new)
    return token


class WordPieceStep(TokenStep, frozen=True):
    """Separates words by spaces and appends continuations (``##ing``); ``cleanup`` cleans up each token."""

    prefix: str
    cleanup: bool

    def __call__(self, token: str, first: bool, last: bool) -> str:
        if not first:
            token = token[len(self.prefix) :] if token.startswith(self.prefix) else f" {token}"
        return _cleaned(token) if self.cleanup else token


class SuffixStep(TokenStep, frozen=True):
    """Replaces ``suffix``, the end of a word, by a space, and removes it from the last token (``BPEDecoder``)."""

    suffix: str
    looks_ahead: ClassVar[bool] = True

    def __call__(self, token: str, first: bool, last: bool) -> str:
        return token.replace(self.suffix, "" if last else " ")


class GroupStep(Struct, frozen=True):
    """Joins tokens."""

    def __call__(self, tokens: Sequence[str]) -> list[str]:
        """The new tokens for a list of tokens, regardless of the tokens before and after it."""
        raise NotImplementedError

    def settled(self, tokens: Sequence[str]) -> int:
        """The number of leading tokens that do not depend on later tokens."""
        return 0

    def of_text(self) -> TextStream:
        """A new step for a text that is one token and arrives in parts."""
        return _AtTheEnd(lambda text: "".join(self([text])))


class ByteFallbackStep(GroupStep, frozen=True):
    """Turns runs of tokens ``<0xNN>`` into text; each byte of a run that is not UTF-8 becomes U+FFFD."""

    def __call__(self, tokens: Sequence[str]) -> list[str]:
        made, run = list[str](), bytearray()
        for token in (*tokens, None):
            value = None if token is None else byte_of(token)
            if value is not None:
                run.append(value)
                continue
            made += _spelled(bytes(run)) if run else ()
            made += () if token is None else (token,)
            run.clear()
        return made

    def settled(self, tokens: Sequence[str]) -> int:
        return len(tokens) - len([*takewhile(lambda token: byte_of(token) is not None, reversed(tokens))])


def _spelled(run: bytes) -> list[str]:
    try:
        return [run.decode()]
    except UnicodeDecodeError:
        return ["\ufffd"] * len(run)


def byte_of(token: str) -> int | None:
    """The byte of a token ``<0xNN>``, or None for other tokens."""
    match = _BYTE.fullmatch(token) if len(token) == 6 else None
    return int(match[1], 16) if match else None


class FuseStep(GroupStep, frozen=True):
    """Joins all tokens."""

    def __call__(self, tokens: Sequence[str]) -> list[str]:
        return ["".join(tokens)]

    def of_text(self) -> TextStream:
        return _ByLetters(JoinStep(""))


class ByteLevelStep(GroupStep, frozen=True):
    """Joins the bytes of tokens in the byte alphabet; other tokens are plain text."""

    def __call__(self, tokens: Sequence[str]) -> list[str]:
        return [b"".join(map(alphabet_bytes, tokens)).decode("utf-8", "replace")]


def alphabet_bytes(token: str) -> bytes:
    """The bytes of a token in the byte alphabet, or of its plain text."""
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[letter] for letter in token])
    except KeyError:
        return token.encode()


Step = TokenStep | GroupStep


class _ByLetters(TextStream):
    def __init__(self, step: TokenStep) -> None:
        self._step = step

    def push(self, part: str) -> str:
        return self._step(part, True, True)


class _AtTheEnd(TextStream):
    def __init__(self, change: Callable[[str], str]) -> None:
        self._change, self._parts = change, list[str]()

    def push(self, part: str) -> str:
        self._parts.append(part)
        return ""

    def flush(self) -> str:
        return self._change("".join(self._parts))


class _Strip(TextStream):
    """Removes characters at the start of a text; holds back characters at its end that may have to be removed."""

    def __init__(self, step: StripStep) -> None:
        self._content, self._remaining, self._stop = step.content, step.start, step.stop
        self._held = ""

    def push(self, part: str) -> str:
        if self._remaining and part:
            rest = part.lstrip(self._content)
            dropped = min(len(part) - len(rest), self._remaining)
            part = part[dropped:]
            self._remaining = 0 if part else self._remaining - dropped
        if not self._stop:
            return part
        text = self._held + part
        run = min(len(text) - len(text.rstrip(self._content)), self._stop)
        text, self._held = text[: len(text) - run], text[len(text) - run :]
        return text


# The decoder that runs the steps of a ``tokenizer.json``, in the order of the file.
#
# In: the names of ids. Out: text, as Hugging Face ``tokenizers`` decodes it, with one exception. Only bytes that are
# not UTF-8 become U+FFFD, as in ``decode.py``. ``tokenizers`` also replaces the valid bytes next to invalid bytes, so a
# stream would have to hold back valid bytes.
#
# In most files, the steps for single tokens come first, then a byte step, ``Fuse``, and the steps for the whole text.
# In these files the bytes of an id depend on the id alone, so they are cached. For other files, all steps run for each
# id.


class _Tokens:
    """Runs a step on tokens that arrive one at a time."""

    def __init__(self, step: Step) -> None:
        self._step, self._waiting, self._first = step, list[str](), True

    def push(self, tokens: Iterable[str]) -> list[str]:
        self._waiting += tokens
        step = self._step
        count = len(self._waiting) - step.looks_ahead if isinstance(step, TokenStep) else step.settled(self._waiting)
        return self._run(max(count, 0), False)

    def flush(self) -> list[str]:
        return self._run(len(self._waiting), True)

    def _run(self, count: int, ends: bool) -> list[str]:
        some, self._waiting = self._waiting[:count], self._waiting[count:]
        if isinstance(self._step, GroupStep):
            return self._step(some)
        tokens = [self._step(token, self._first and not at, ends and at == count - 1) for at, token in enumerate(some)]
        self._first = self._first and not some
        return tokens


class _StepStream(ByteStream):
    """Runs all steps of a decoder on ids that arrive one at a time."""

    def __init__(self, names: Sequence[str], steps: Sequence[Step]) -> None:
        joins = (at for at, step in enumerate(steps) if isinstance(step, FuseStep | ByteLevelStep))
        join = next(joins, len(steps))
        self._names, self._tokens = names, [_Tokens(step) for step in steps[:join]]
        self._bytes = join < len(steps) and isinstance(steps[join], ByteLevelStep)
        self._utf8, self._steps = UTF8Stream(), [step.of_text() for step in steps[join + 1 :]]

    def push(self, token_id: int) -> str:
        tokens = [self._names[token_id]]
        for step in self._tokens:
            tokens = step.push(tokens)
        return self._changed(self._joined(tokens))

    def flush(self) -> str:
        tokens = list[str]()
        for step in self._tokens:
            tokens = [*step.push(tokens), *step.flush()]
        return self._flushed(self._joined(tokens) + self._utf8.flush())

    def _joined(self, tokens: Sequence[str]) -> str:
        return self._utf8.push(b"".join(map(alphabet_bytes, tokens))) if self._bytes else "".join(tokens)


class StepDecoder(Decoder):
    """Runs the steps of a decoder on ids; ``names`` has the name of each id.

    ``verbatim`` has the ids whose names are plain text, ``absent`` the ids without text.
    """

    def __init__(
        self, names: Sequence[str], steps: Sequence[Step], verbatim: Collection[int] = (), absent: Iterable[int] = ()
    ) -> None:
        self._names, self._steps, self._verbatim = names, tuple(steps), verbatim
        self.absent = frozenset(absent)
        single = takewhile(lambda step: isinstance(step, TokenStep) and not step.looks_ahead, steps)
        self._by_token = [step for step in single if isinstance(step, TokenStep)]
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
            tokens = [step(part, False, False) for part in tokens] if isinstance(step, TokenStep) else step(tokens)
        return "".join(tokens)

    def steps(self) -> list[TextStream]:
        return [step.of_text() for step in self._by_text]

    def stream(self) -> ByteStream:
        return super().stream() if self.is_table else _StepStream(self._names, self._steps)
