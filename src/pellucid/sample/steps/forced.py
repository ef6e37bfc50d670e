"""Forced: the first token of an answer, and the last token of an answer that reaches its limit (encoder-decoders).

Translators begin an answer with the token of its language. ``target_language`` names this token as the tokenizer does
("fra_Latn", "fr_XX"), without the underscores of M2M-100 ("fr" for "__fr__").
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import whole
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, option
from pellucid.util.checks import string, token_id

LONGEST = 64


def _language(name: str, value: object) -> str:
    language = string(name, value)
    if len(language) > LONGEST:
        raise InvalidRequest(f"{name}={brief(value)}: must be the name of a language token")
    return language


@dataclass(frozen=True)
class Forced(SamplerStep):
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
        for name, token in (
            ("forced_bos_token_id", first),
            ("forced_eos_token_id", self.forced_eos_token_id),
        ):
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
    """The token of a language.

    Raises:
        InvalidRequest: the tokenizer has no such token.
    """
    for name in (language, f"__{language}__"):
        # The name itself is looked up: encoding an unknown name can give the unknown token, which is special, too.
        token = context.tokenizer.id_of(name)
        if token is not None and context.tokenizer.is_special(token):
            return token
    raise InvalidRequest(
        f"target_language={brief(language)}: the model has no token of this language: name the token as the "
        "tokenizer does, or leave it out"
    )
