"""Steps that forbid tokens: allowed and banned tokens, a minimum length, forced tokens, and constraints on the text."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import anything, tokens_or_texts, whole
from pellucid.sample.step import (
    RequestContext,
    SamplerStep,
    TokenHistory,
    option,
    options_of,
    split_entries,
    token_sequences,
)
from pellucid.util.checks import string, token_id

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pellucid.sample.grammars.grammar import Grammar
    from pellucid.sample.grammars.matching import Matching

MAX_ALLOWED = 65_536


@dataclass(frozen=True)
class Allowed(SamplerStep):
    """Allowed: only these tokens, given as ids or texts.

    A text allows all tokens that it is encoded as, at the beginning of a text and after a space. End tokens are allowed
    only if they are named.
    """

    name, order, kind, off = "allowed", 60, "forbid", ()

    allowed: Sequence[Any] = option(
        (),
        tokens_or_texts(MAX_ALLOWED),
        "Only the tokens of these words, separated by commas, or these ids, may occur.",
        split_entries,
    )
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)

    def bind(self, context: RequestContext) -> SamplerStep:
        tokens = {
            token for entry in self.allowed for ids in token_sequences(context, "allowed", entry) for token in ids
        }
        return Allowed(self.allowed, np.array(sorted(tokens), np.int64))

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep(candidates.positions(self.ids))


MAX_BANNED = 4096


@dataclass(frozen=True)
class Banned(SamplerStep):
    """Banned: tokens or words that must not occur.

    An entry is a token id, a list of ids or a text. The last id of a list is forbidden where the other ids of the list
    precede it. A text is forbidden as the tokens that it is encoded as, at the beginning of a text and after a space.
    The model can still spell the text with other tokens; only a grammar (``forbidden.py``) prevents this.
    """

    name, order, kind, off = "banned", 50, "forbid", ()

    banned: Sequence[Any] = option(
        (),
        tokens_or_texts(MAX_BANNED, sequences=True),
        "Words that must not occur, separated by commas, or ids.",
        split_entries,
    )
    always: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)
    sequences: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    def bind(self, context: RequestContext) -> SamplerStep:
        spelled = [ids for entry in self.banned for ids in token_sequences(context, "banned", entry)]
        alone = sorted({ids[0] for ids in spelled if len(ids) == 1})
        several = tuple(dict.fromkeys(ids for ids in spelled if len(ids) > 1))
        return replace(self, always=np.array(alone, np.int64), sequences=several)

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        ids = history.ids
        ends = [s[-1] for s in self.sequences if tuple(ids[max(len(ids) - len(s) + 1, 0) :].tolist()) == s[:-1]]
        ids = np.concatenate([self.always, np.array(ends, np.int64)]) if ends else self.always
        return candidates.forbid(ids)


@dataclass(frozen=True)
class MinNewTokens(SamplerStep):
    """Minimum length: end tokens are forbidden until ``min_new_tokens`` tokens are generated."""

    name, order, kind, off = "min_new_tokens", 70, "forbid", 0

    min_new_tokens: int = option(
        0, whole(0, 1 << 31, "0 turns it off"), "Generate at least this many tokens; 0 is off."
    )
    ends: tuple[int, ...] = field(default=(), repr=False)

    def bind(self, context: RequestContext) -> SamplerStep:
        return MinNewTokens(self.min_new_tokens, tuple(sorted(context.ends)))

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        if history.index >= self.min_new_tokens:
            return candidates
        return candidates.forbid(np.array(self.ends, np.int64))


LONGEST = 64


def _language(name: str, value: object) -> str:
    language = string(name, value)
    if len(language) > LONGEST:
        raise InvalidRequest(f"{name}={brief(value)}: must be the name of a language token")
    return language


@dataclass(frozen=True)
class Forced(SamplerStep):
    """Forced: the first token of an answer, and the last token of an answer that reaches its limit (encoder-decoders).

    Translators begin an answer with the token of its language. ``target_language`` names this token as the tokenizer
    does ("fra_Latn", "fr_XX"), without the underscores of M2M-100 ("fr" for "__fr__").
    """

    name, order, kind = "forced", 75, "forbid"

    target_language: str = option(
        "", _language, 'The language of a translation, as the tokenizer names it: "fra_Latn".', str
    )
    forced_bos_token_id: int = option(
        -1, whole(-1, 1 << 31, "-1 turns it off"), "The first token of the answer; -1 is off."
    )
    forced_eos_token_id: int = option(
        -1, whole(-1, 1 << 31, "-1 turns it off"), "The last token that the limit allows; -1 is off."
    )
    limit: int | None = field(default=None, repr=False)

    @property
    def idle(self) -> bool:
        return not self.target_language and self.forced_bos_token_id < 0 and self.forced_eos_token_id < 0

    def bind(self, context: RequestContext) -> SamplerStep:
        first = self.forced_bos_token_id
        if self.target_language:
            first = _token_of(context, self.target_language)
        for name, token in (("forced_bos_token_id", first), ("forced_eos_token_id", self.forced_eos_token_id)):
            if token >= 0:
                token_id(name, token, context.vocabulary)
        return replace(self, forced_bos_token_id=first, limit=context.limit)

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        token = -1
        if history.index == 0:
            token = self.forced_bos_token_id
        elif self.limit is not None and history.index == self.limit - 1:
            token = self.forced_eos_token_id
        if token < 0:
            return candidates
        # As in transformers, a forced token overrides the steps before it, and its log-probability is 0.
        return Candidates(np.array([token]), np.zeros(1, np.float32))


def _token_of(context: RequestContext, language: str) -> int:
    """The token of a language. Raises InvalidRequest: the tokenizer has no such token."""
    for name in (language, f"__{language}__"):
        # The name itself is looked up: encoding an unknown name can give the unknown token, which is special, too.
        token = context.tokenizer.id_of(name)
        if token is not None and context.tokenizer.is_special(token):
            return token
    raise InvalidRequest(
        f"target_language={brief(language)}: the model has no token of this language: name the token as the "
        "tokenizer does, or leave it out"
    )


@dataclass(frozen=True)
class Constraint(SamplerStep):
    """Constraint: keeps the tokens after which the text can still satisfy a constraint (``grammars/grammar.py``).

        json_schema   JSON of a schema        regex     a text that matches as a whole
        choices       one of several texts    grammar   a sentence of a grammar, in Lark's form or GBNF

    The text ends when no token can follow. End tokens are allowed as soon as the text satisfies the constraint. Other
    stop criteria, such as ``max_new_tokens``, may cut the text off earlier.
    """

    name, order, kind = "constraint", 80, "forbid"

    json_schema: Any = option(None, anything, "The text is JSON that this schema accepts.", str)
    regex: Any = option(None, anything, "The whole text matches this regular expression.", str)
    choices: Any = option(
        None, anything, "The text is one of these, separated by commas.", lambda text: text.split(",")
    )
    grammar: Any = option(None, anything, "The text follows this grammar, in Lark's form or GBNF.", str)
    matching: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        constraints = self.constraints
        if len(constraints) > 1:
            raise InvalidRequest(
                f"{' and '.join(constraints)} are given; a text can follow one of them: leave the others out"
            )
        if constraints:
            self._compiled()

    @property
    def constraints(self) -> dict[str, Any]:
        """The constraints that are set, by option name."""
        return {kind: getattr(self, kind) for kind in options_of(type(self)) if getattr(self, kind) is not None}

    @property
    def idle(self) -> bool:
        return not self.constraints

    @property
    def complete(self) -> bool:
        return self.matching is not None and self.matching.complete

    @property
    def note(self) -> str:
        return f"{next(iter(self.constraints))}{', one way only' if self.forced else ''}"

    @property
    def forced(self) -> Sequence[int]:
        return () if self.matching is None else self.matching.forced

    def bind(self, context: RequestContext) -> SamplerStep:
        from pellucid.sample.grammars.matching import Matching

        return self._with(Matching(self._compiled(), context))

    def _compiled(self) -> Grammar:
        """The grammar of the constraint. Most requests have none, so its modules are imported here."""
        from pellucid.sample.grammars.grammar import compiled

        ((kind, value),) = self.constraints.items()
        return compiled(kind, value)

    def fork(self) -> SamplerStep:
        return self if self.matching is None else self._with(self.matching.fork())

    def _with(self, matching: Matching) -> Constraint:
        """A copy with this state, without checking the constraint again."""
        bound = copy(self)
        object.__setattr__(bound, "matching", matching)
        return bound

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        assert self.matching is not None, "it is bound before it is applied"
        restricted: Candidates = self.matching.restrict(candidates)
        return restricted

    @property
    def advancing(self) -> Future[None] | None:
        return None if self.matching is None else self.matching.advancing

    @property
    def preparing(self) -> Future[None] | None:
        return None if self.matching is None else self.matching.preparing

    def accept(self, token: int, probability: float) -> None:
        if self.matching is not None:
            self.matching.accept(token)

    def end(self) -> None:
        if self.matching is not None:
            self.matching.close()
