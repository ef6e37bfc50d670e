"""POST /look/generate: generated text, token by token, with the probabilities of the token and its alternatives.

``probability`` is a token's probability in the model's distribution, ``final_probability`` its probability after the
sampler chain.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from pellucid.engine.output import Generation
from pellucid.engine.request import Request
from pellucid.sample.logprobs import TokenLogprobs
from pellucid.serve.generation_options import CONTROL, OPENAI_DEFAULTS, generation_options
from pellucid.serve.look.edit_fields import edits_of
from pellucid.serve.look.prompt_fields import PromptFields, PromptTokens, prompt_of
from pellucid.serve.look.streamed_values import StreamedValues, with_values
from pellucid.serve.look.token_fields import prompt_fields, token_fields
from pellucid.serve.openai.common_fields import OPENAI_RULES
from pellucid.serve.openai.response_parts import usage
from pellucid.serve.request_body import BodyRules, BodyType, RequestBody
from pellucid.serve.served_model import ServedModel
from pellucid.tokenize.stages.characters import CharacterGrouper
from pellucid.util.probabilities import exponentials

DEFAULT_TOKENS = 64


class LookGenerateFields(PromptFields, frozen=True, kw_only=True):
    """Fields of /look/generate. ``points`` and ``norms`` add the values of points, as in /look/trace."""

    points: Sequence[str] = ()
    norms: Sequence[str] = ()
    alternatives: Annotated[int, Meta(ge=0, le=40)] = 8
    stream: bool = True


LOOK_GENERATE = BodyType(
    LookGenerateFields,
    BodyRules(
        options=generation_options("watch", "receipt", "logprobs", "prompt_logprobs", *CONTROL),
        renamed=OPENAI_RULES.renamed,
        defaults=OPENAI_DEFAULTS,
    ),
)


@dataclass(frozen=True)
class LookGeneration:
    """A request for one text. The answer is a list of events: "prompt", "token" and "end".

    With ``values`` it has also "values", before the token that they lead to, and "dropped"
    (``look/streamed_values.py``). The event "prompt" then names the columns of their norms. In an encoder-decoder, the
    event "prompt" has the tokens of the decoder, and ``source`` the tokens of the source.
    """

    llm: ServedModel
    groups: Sequence[Request]
    values: StreamedValues | None
    prompt: PromptTokens

    @classmethod
    def of(cls, body: RequestBody[LookGenerateFields], llm: ServedModel) -> LookGeneration:
        """Read a body. Raises InvalidRequest if a field is wrong."""
        prompt, edits = prompt_of(body, llm), edits_of(body.fields.edits, llm)
        options = {"max_new_tokens": DEFAULT_TOKENS, **body.options(llm.recommended)}
        options["logprobs"] = body.fields.alternatives
        options.setdefault("logprobs_of", "both")
        points, norms, options["edits"] = body.fields.points, body.fields.norms, edits
        if not points and not norms:
            return cls(llm, [llm.request(prompt.ids, resumed=prompt.answer, **options)], None, prompt)
        request, values = StreamedValues.of(llm, prompt, points, norms, options)
        return cls(llm, [request], values, prompt)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """All events as one list."""
        (group,) = self.groups
        (generation,) = group.results()
        builder, grouper = group.outputs[0], self._grouper()
        made_of = zip(builder.logprobs, builder.texts, builder.times)
        events = [self._prompt()]
        for count, one in enumerate(made_of):
            if self.values is not None:
                events += self.values.events(len(self.prompt.read) + count)
            events.append(self._token(*one, grouper))
        if self.values is not None:
            events += self.values.end()
        return {"id": number, "model": name, "events": [*events, self._end(generation)]}

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """Events as they occur."""
        (group,) = self.groups
        yield {**self._prompt(), "id": number, "model": name}
        grouper = self._grouper()
        times = iter(group.outputs[0].times)  # appended before the token is streamed
        async with aclosing(group.stream()) as outputs, aclosing(with_values(outputs, self.values)) as items:
            async for item in items:
                events, token = item
                if token is not None:
                    assert token.logprobs is not None
                    events.append(self._token(token.logprobs, token.text, next(times), grouper))
                yield events[0] if len(events) == 1 else {"events": events}
        yield self._end(group.result())

    def _prompt(self) -> dict[str, Any]:
        norms = {"norms": self.values.norms} if self.values is not None and self.values.norms else {}
        return {"type": "prompt", **prompt_fields(self.llm.tokenizer, self.prompt), **norms}

    def _grouper(self) -> CharacterGrouper:
        """A grouper that has read the prompt."""
        grouper = self.llm.tokenizer.grouper()
        for token in self.prompt.read:
            grouper.push(token)
        return grouper

    def _token(
        self, logprobs: TokenLogprobs, text: str, seconds: float, grouper: CharacterGrouper
    ) -> dict[str, Any]:
        tokenizer = self.llm.tokenizer
        ids = logprobs.top_ids.tolist()
        others = [
            {**token_fields(tokenizer, token, grouper.then(token)), "probability": p}
            for token, p in zip(ids, exponentials(logprobs.top).tolist())
        ]
        if logprobs.final is not None:
            finals = exponentials(logprobs.final).tolist()
            if self.groups[0].outputs[0].chain.greedy:  # the token that has the highest logit is certain
                finals = [float(token == logprobs.id) for token in ids]
            others = [{**one, "final_probability": p} for one, p in zip(others, finals)]
        return {
            "type": "token",
            **token_fields(tokenizer, logprobs.id, grouper.push(logprobs.id)),
            "text": text,
            "probability": math.exp(logprobs.chosen),
            "rank": logprobs.rank,
            "seconds": seconds,
            "alternatives": others,
        }

    def _end(self, generation: Generation) -> dict[str, Any]:
        seed = None if generation.seed is None else str(generation.seed)  # too large for a JavaScript number
        return {
            "type": "end",
            "finish_reason": generation.finish_reason,
            "seed": seed,
            "usage": usage([generation]),
            "notices": self.groups[0].unused_edits(),
            "seconds": generation.timings.total,
        }
