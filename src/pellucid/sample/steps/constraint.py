"""Constraint: keeps the tokens after which the text can still satisfy a constraint (``grammars/grammar.py``).

    json_schema   JSON of a schema        regex     a text that matches as a whole
    choices       one of several texts    grammar   a sentence of a grammar, in Lark's form or GBNF

The text ends when no token can follow. End tokens are allowed as soon as the text satisfies the constraint. Other stop
criteria, such as ``max_new_tokens``, may cut the text off earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pellucid.errors import InvalidRequest
from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import anything
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, option, options_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pellucid.sample.grammars.grammar import Grammar
    from pellucid.sample.grammars.matching import Matching


@dataclass(frozen=True)
class Constraint(SamplerStep):
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
