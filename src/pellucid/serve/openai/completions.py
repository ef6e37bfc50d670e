"""/v1/completions: a prompt in, what follows it out; and evaluation by the log-probabilities of a given text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.engine.inputs import PromptInput, several
from pellucid.engine.output import Generation
from pellucid.engine.text_group import TextGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.logprobs import Logprobs
from pellucid.serve.body import MOST_CHOICES, MOST_LOGPROBS, Body, add_ends
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import REASONS, added, finite, head, token_text, usage
from pellucid.serve.openai.fields import stream_usage
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.infill import infill_prompt

MOST_PROMPTS = 1024
KIND = "text_completion"
USUAL_TOKENS = 16  # OpenAI's default of max_tokens


@dataclass(frozen=True)
class CompletionRequest:
    """What a body asks for: ``choices`` texts of each prompt, a group, the best of ``best_of``.

    With ``echo`` a text begins with its prompt; ``logprobs`` is how many alternatives of each token are reported, None
    for no log-probabilities. ``with_usage``: a stream ends with its usage.
    """

    groups: Sequence[TextGroup]
    choices: int
    best_of: int | None
    echo: bool
    logprobs: int | None
    tokenizer: Tokenizer
    with_usage: bool

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> CompletionRequest:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        prompt = body.required("prompt")
        if not isinstance(prompt, (str, list)) or not prompt:
            raise InvalidRequest(f"prompt={brief(prompt)}: must be a text, token ids, or a list of these")
        prompts = several(prompt) or [prompt]
        if len(prompts) > MOST_PROMPTS:
            raise InvalidRequest(f"prompt has {len(prompts):,} prompts; the limit is {MOST_PROMPTS:,}")
        choices = body.count("n", 1, MOST_CHOICES) or 1
        best_of, echo = body.count("best_of", choices, MOST_CHOICES), body.flag("echo")
        logprobs = body.count("logprobs", 0, MOST_LOGPROBS)
        suffix = body.text("suffix")
        with_usage = stream_usage(body)
        options = {"max_new_tokens": USUAL_TOKENS, **body.options(llm.recommended)}
        if logprobs is not None:
            options |= {"logprobs": logprobs} | ({"prompt_logprobs": logprobs} if echo else {})
        if best_of is not None:
            options.setdefault("logprobs", 0)
        if suffix is not None:
            prompts, ends = _infill(prompts, suffix, llm.tokenizer)
            add_ends(options, ends)
        groups = [llm.request(prompt, best_of or choices, **options) for prompt in prompts]
        return cls(groups, choices, best_of, echo, logprobs, llm.tokenizer, with_usage)

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """The body of the answer ``number`` of the model ``name``, when the groups have ended."""
        choices, used = list[dict[str, Any]](), list[dict[str, Any]]()
        for group in self.groups:
            made = group.results()
            used.append(usage(made))
            if self.best_of is not None:
                made.sort(key=lambda one: -one.mean_logprob)
            for one in made[: self.choices]:
                choices.append(self._choice(len(choices), group.prompt, one, self.tokenizer))
        return {**head(f"cmpl-{number}", KIND, name), "choices": choices, "usage": added(used)}

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """The texts in pieces, prompt by prompt."""
        if self.best_of is not None or self.echo or self.logprobs is not None:
            raise InvalidRequest("stream=true goes with none of best_of, echo and logprobs: leave them out")
        begin = head(f"cmpl-{number}", KIND, name)
        for place, group in enumerate(self.groups):
            async with aclosing(group.stream()) as outputs:
                async for at, output in outputs:
                    reason = output.finish_reason
                    if output.text or reason:
                        choice = {
                            "index": place * self.choices + at,
                            "text": output.text,
                            "logprobs": None,
                            "finish_reason": REASONS[reason] if reason else None,
                        }
                        yield {**begin, "choices": [choice]}
        if self.with_usage:
            yield {**begin, "choices": [], "usage": added([usage(group.results()) for group in self.groups])}

    def _choice(self, number: int, ids: list[int], made: Generation, tokenizer: Tokenizer) -> dict[str, Any]:
        before = tokenizer.decode(ids) if self.echo else ""
        return {
            "index": number,
            "text": before + made.text,
            "logprobs": None if self.logprobs is None else self._logprobs(ids, made, tokenizer),
            "finish_reason": REASONS[made.finish_reason],
        }

    def _logprobs(self, ids: list[int], made: Generation, tokenizer: Tokenizer) -> dict[str, Any]:
        """OpenAI's older form: parallel lists. With ``echo`` the first token has nothing before it: null."""
        assert made.logprobs is not None
        parts = [made.logprobs]
        tokens, values, tops = list[str](), list[float | None](), list[dict[str, float] | None]()
        if self.echo and made.prompt_logprobs is not None:
            tokens, values, tops = [token_text(ids[0], tokenizer)], [None], [None]
            parts.insert(0, made.prompt_logprobs)
        for part in parts:
            tokens += [token_text(int(token), tokenizer) for token in part.ids]
            values += [finite(float(value)) for value in part.chosen]
            tops += _tops(part, tokenizer)
        starts = np.cumsum([0, *(len(token) for token in tokens)])[:-1]
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": starts.tolist(),
        }


def blank_event(name: str, number: str) -> dict[str, Any]:
    """A piece of a stream without any text."""
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
    return {**head(f"cmpl-{number}", KIND, name), "choices": [choice]}


def _infill(prompts: Sequence[Any], suffix: str, tokenizer: Tokenizer) -> tuple[list[PromptInput], list[int]]:
    """The prompts with the text after the gap, and the tokens that end what fills it."""
    made, ends = list[PromptInput](), list[int]()
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InvalidRequest(f"prompt={brief(prompt)}: must be a text where suffix is given")
        ids, ends = infill_prompt(tokenizer, prompt, suffix)
        made.append(ids)
    return made, ends


def _tops(part: Logprobs, tokenizer: Tokenizer) -> list[dict[str, float] | None]:
    return [
        {
            token_text(int(token), tokenizer): finite(float(value))
            for token, value in zip(ids, row)
            if token >= 0
        }
        for ids, row in zip(part.top_ids, part.top)
    ]
