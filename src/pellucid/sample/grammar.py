"""What a text must be, JSON of a schema, a match of a regex, one of some choices, a sentence of a grammar, and what may
come next. The parser is llguidance (an Earley parser over a lexer of derivatives; Microsoft, MIT).

``Grammar`` is checked, and has limits; ``Matching`` is one text on its way: after each token the set of tokens that may
follow is computed, by a thread of its own beside the model's next step if there is a core that this leaves idle.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.messages import brief, shown
from pellucid.sample.candidates import Candidates
from pellucid.sample.step import Setting, Words

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

LONGEST = {"json_schema": 1 << 20, "regex": 1 << 16, "grammar": 1 << 18}  # characters
DEEPEST = 64  # of a schema's objects and lists, of a grammar's brackets
MOST_CHOICES, LONGEST_CHOICE = 10_000, 4096
# White space in JSON as llama.cpp has it: without a bound, small models never stop making it.
JSON = {"whitespace_pattern": r" |\n{1,2}[ \t]{0,20}"}
LIMITS = {"max_grammar_size": 200_000, "initial_lexer_fuel": 1_000_000, "max_lexer_states": 100_000}


@dataclass(frozen=True)
class Grammar:
    """A grammar that llguidance accepts: its ``kind``, an option's name, and its ``source`` in llguidance's form."""

    kind: str
    source: str


def compiled(kind: str, value: Any) -> Grammar:
    """The grammar that an option asks for.

    Raises:
        InvalidRequest: it is wrong, too deep, too large, or asks for what is not implemented.
    """
    return _checked(kind, _READERS[kind](kind, value))


@functools.lru_cache(maxsize=64)
def _checked(kind: str, text: str) -> Grammar:
    from llguidance import LLMatcher, LLParserLimits

    try:
        source = _source(kind, text)
        problem = LLMatcher.validate_grammar(source, limits=LLParserLimits(**LIMITS))  # type: ignore[arg-type]
    except Exception as error:  # its reader of GBNF has errors of its own, and may meet a bug of its own
        problem = str(error) or type(error).__name__
    if problem:
        raise _refused(kind, problem)
    return Grammar(kind, source)


def _source(kind: str, text: str) -> str:
    """A value in llguidance's form."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, defaults=JSON)  # type: ignore[arg-type]
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "choices":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, json.loads(text))))
    return LLMatcher.grammar_from_lark(any_to_lark(text))


def _refused(kind: str, problem: str) -> InvalidRequest:
    line = " ".join(shown(line.strip()) for line in problem.splitlines() if line.strip())
    return InvalidRequest(f"{kind} cannot be followed: {line[:200]}; mend it, or leave it out")


def _schema(kind: str, value: Any) -> str:
    """A schema's JSON. It may be that, a mapping, or a class of pydantic's."""
    if hasattr(value, "model_json_schema"):
        value = value.model_json_schema()
    if isinstance(value, str):
        _short(kind, value)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _refused(kind, f"it is no JSON ({error})") from None
    if not isinstance(value, (Mapping, bool)):
        raise InvalidRequest(f"{kind}={brief(value)}: must be a JSON schema, as a mapping or as JSON")
    _shallow(kind, value)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _refused(kind, f"it is no JSON ({error})") from None
    return _short(kind, text)


def _shallow(kind: str, value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, (Mapping, list, tuple))
            for inner in (one.values() if isinstance(one, Mapping) else one)
        ]
        if not level:
            return
        if len(level) > LONGEST[kind]:
            break
    raise InvalidRequest(f"{kind} is nested more than {DEEPEST} deep or too large: make it simpler")


def _text(kind: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{kind}={brief(value)}: must be a text that is not empty")
    depth = deepest = 0
    for character in value:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(depth, deepest)
    if deepest > DEEPEST:
        raise InvalidRequest(
            f"{kind} has brackets nested {deepest:,} deep; the limit is {DEEPEST}: make it simpler"
        )
    return _short(kind, value)


def _short(kind: str, text: str) -> str:
    if len(text) > LONGEST[kind]:
        raise InvalidRequest(
            f"{kind} has {len(text):,} characters; the limit is {LONGEST[kind]:,}: make it shorter"
        )
    return text


def _choices(kind: str, value: Any) -> str:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise InvalidRequest(f"{kind}={brief(value)}: must be a list of at least one text")
    if len(value) > MOST_CHOICES:
        raise InvalidRequest(f"{kind} has {len(value):,} texts; the limit is {MOST_CHOICES:,}: give fewer")
    for one in value:
        if not isinstance(one, str) or not 0 < len(one) <= LONGEST_CHOICE:
            raise InvalidRequest(
                f"{kind} holds {brief(one)}: must be a text of 1 to {LONGEST_CHOICE:,} characters"
            )
    return json.dumps(list(value))


_READERS = {"json_schema": _schema, "regex": _text, "choices": _choices, "grammar": _text}
KINDS = tuple(_READERS)


class _Pieces:
    """A vocabulary as llguidance wants it."""

    def __init__(self, words: Words, ends: frozenset[int]) -> None:
        self.bos_token_id = None
        self.eos_token_id = min(ends, default=0)
        self.tokens = [words.token_bytes(token) for token in range(words.vocab_size)]
        self.special_token_ids = [token for token in range(words.vocab_size) if words.is_special(token)]
        self._words = weakref.ref(words)

    def __call__(self, text: bytes | str) -> list[int]:
        words = self._words()
        if words is None:
            return []
        decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return words.encode(decoded, add_special=False)


_trees: weakref.WeakKeyDictionary[Words, dict[frozenset[int], LLTokenizer]] = weakref.WeakKeyDictionary()
"""llguidance's trees of vocabularies, which take a second to make of 262,144 tokens, by the tokens that end a text."""


def _tree(words: Words, ends: frozenset[int]) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    known = _trees.setdefault(words, {})
    if ends not in known:
        pieces = TokenizerWrapper(_Pieces(words, ends))
        known[ends] = LLTokenizer(pieces, n_vocab=words.vocab_size, eos_token=sorted(ends) or None)
    return known[ends]


@functools.cache
def _beside() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="pellucid-grammar")


class Matching:
    """A text on its way through a grammar, and the tokens that may come next.

    Where the grammar leaves one way only, the parser is ahead of the text: ``forced`` are the tokens that must come.
    While a mask is being computed nothing else may ask the matcher.
    """

    def __init__(self, grammar: Grammar, setting: Setting) -> None:
        from llguidance import LLMatcher, LLParserLimits

        words, self._ends = setting.words, setting.ends
        self._size, self._kind, self._idle = words.vocab_size, grammar.kind, setting.idle
        limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        self._matcher = LLMatcher(_tree(words, self._ends), grammar.source, log_level=0, limits=limits)
        self.forced: list[int] = []
        self._stopped, self._coming = False, _nothing()
        self._advance()

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return self._stopped and not self.forced

    def among(self, candidates: Candidates) -> Candidates:
        """Those that may come next.

        Raises:
            InvalidRequest: the grammar has become too complex to follow.
        """
        if self.forced:
            return candidates.keep(candidates.places(np.array(self.forced[:1])))
        self._coming.result()
        self._check()
        return candidates.allow(self._mask)

    def accept(self, token: int) -> None:
        """A token has come."""
        if self.forced:
            del self.forced[0]
        elif token not in self._ends:
            self._coming.result()
            self._matcher.consume_token(token)
            self._advance()

    def fork(self) -> Matching:
        """The same text, to go on otherwise."""
        self._coming.result()
        made = object.__new__(Matching)
        made.__dict__.update(self.__dict__)
        made._matcher, made.forced = self._matcher.deep_copy(), list(self.forced)
        return made

    def _advance(self) -> None:
        """Find the tokens that must come, and have those computed that may come after them."""
        self._check()
        if not self._matcher.is_stopped():
            forced = self._matcher.compute_ff_tokens()
            self.forced = forced[: self._matcher.try_consume_tokens(forced)]
            self._check()
        self._stopped = bool(self._matcher.is_stopped())
        # An array of its own: a fork may still read the last one.
        self._mask = np.zeros(-(-self._size // 32), np.uint32)
        if self._stopped:
            for end in self._ends:
                self._mask[end >> 5] |= np.uint32(1 << (end & 31))
        elif self._idle:
            self._coming = _beside().submit(_fill, self._matcher, self._mask)
        else:  # beside the model it would cost more: each would wait for the other
            _fill(self._matcher, self._mask)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._kind, self._matcher.get_error())


def _nothing() -> Future[None]:
    """What has come already."""
    done: Future[None] = Future()
    done.set_result(None)
    return done


def _fill(matcher: LLMatcher, mask: NDArray[np.uint32]) -> None:
    """Compute a mask; llguidance gets its address only, so whoever waits no longer must not be who keeps it."""
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
