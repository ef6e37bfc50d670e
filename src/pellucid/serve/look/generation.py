"""POST /look/generate: generated text, token by token, with the probabilities of the token and its alternatives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.engine.output import Generation
from pellucid.engine.request import Request
from pellucid.sample.logprobs import TokenLogprobs
from pellucid.serve.body import Body
from pellucid.serve.look.fields import edits_of, prompt_of
from pellucid.serve.look.tokens import described, token_fields
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import usage
from pellucid.tokenize.stages.characters import CharacterGrouper

USUAL_TOKENS, USUAL_ALTERNATIVES = 64, 8
MOST_ALTERNATIVES = 40


@dataclass(frozen=True)
class LookGeneration:
    """A request for one text, in events "prompt", "token" and "end"."""

    llm: ServedModel
    groups: Sequence[Request]

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> LookGeneration:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        prompt, edits = prompt_of(body, llm), edits_of(body, llm)
        count = body.count("alternatives", 0, MOST_ALTERNATIVES)
        options = {"max_new_tokens": USUAL_TOKENS, **body.options(llm.recommended)}
        options["logprobs"] = USUAL_ALTERNATIVES if count is None else count
        return cls(llm, [llm.request(prompt, edits=edits, **options)])

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """All events as one list."""
        (group,) = self.groups
        (made,) = group.results()
        builder, grouper = group.outputs[0], self._grouper()
        made_of = zip(builder.logprobs, builder.texts, builder.times)
        tokens = [self._token(*one, grouper) for one in made_of]
        return {"id": number, "model": name, "events": [self._prompt(), *tokens, self._end(made)]}

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Events as they occur."""
        (group,) = self.groups
        yield {**self._prompt(), "id": number, "model": name}
        grouper = self._grouper()
        times = iter(group.outputs[0].times)  # appended before the token is streamed
        async with aclosing(group.stream()) as outputs:
            async for token in outputs:
                assert token.logprobs is not None
                yield self._token(token.logprobs, token.text, next(times), grouper)
        yield self._end(group.result())

    def _prompt(self) -> dict[str, Any]:
        ids = self.groups[0].prompt
        return {"type": "prompt", "ids": ids, **described(self.llm.tokenizer, ids)}

    def _grouper(self) -> CharacterGrouper:
        """A grouper that has read the prompt."""
        made = self.llm.tokenizer.grouper()
        for token in self.groups[0].prompt:
            made.push(token)
        return made

    def _token(
        self, found: TokenLogprobs, text: str, seconds: float, grouper: CharacterGrouper
    ) -> dict[str, Any]:
        tokenizer = self.llm.tokenizer
        others = [
            {**token_fields(tokenizer, token, grouper.then(token)), "probability": p}
            for token, p in zip(found.top_ids.tolist(), np.exp(found.top).tolist())
        ]
        return {
            "type": "token",
            **token_fields(tokenizer, found.id, grouper.push(found.id)),
            "text": text,
            "probability": float(np.exp(found.chosen)),
            "rank": found.rank,
            "seconds": seconds,
            "alternatives": others,
        }

    def _end(self, made: Generation) -> dict[str, Any]:
        return {
            "type": "end",
            "finish_reason": made.finish_reason,
            "seed": None if made.seed is None else str(made.seed),  # too large for a JavaScript number
            "usage": usage([made]),
            "notices": self.groups[0].unused_edits(),
            "seconds": made.timings.total,
        }
