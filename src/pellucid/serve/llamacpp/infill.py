"""/infill: the text between two others, with other files of the repository before them.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pellucid.engine.text_group import TextGroup
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import Body, BodyForm, add_ends
from pellucid.serve.model import ServedModel
from pellucid.tokenize.infill import infill_prompt

INFILL_BODY = BodyForm(
    harmless=frozenset({"cache_prompt", "id_slot", "n_keep", "t_max_prompt_ms", "return_tokens", "n_indent"}),
    renamed={
        "n_predict": "max_new_tokens",
        "repeat_penalty": "repetition_penalty",
    },
    defaults={"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    absent={"n_predict": (-1,)},
)
MOST_FILES = 256


@dataclass(frozen=True)
class InfillRequest:
    """A gap that is filled."""

    group: TextGroup

    @classmethod
    def of(cls, body: Body, llm: ServedModel) -> InfillRequest:
        """Read a body.

        Raises:
            InvalidRequest: a field is wrong; the message names it.
        """
        before = (body.text("input_prefix") or "") + (body.text("prompt") or "")
        after, files = body.text("input_suffix") or "", list[tuple[str, str]]()
        extra = body.objects("input_extra")
        if len(extra) > MOST_FILES:
            raise InvalidRequest(f"input_extra has {len(extra):,} files; the limit is {MOST_FILES}")
        for at, one in enumerate(extra):
            name, text = one.get("filename", "file"), one.get("text")
            if not isinstance(name, str) or not isinstance(text, str):
                raise InvalidRequest(
                    f"input_extra[{at}]={brief(one)}: must have a filename and a text, both texts"
                )
            files.append((name, text))
        ids, ends = infill_prompt(llm.tokenizer, before, after, files)
        options = body.options(llm.recommended)
        add_ends(options, ends)
        return cls(llm.request(ids, **options))

    @property
    def groups(self) -> list[TextGroup]:
        """The request to the engine, checked."""
        return [self.group]

    def answer(self, name: str, number: str) -> dict[str, Any]:
        """The body of the answer of the model ``name``."""
        (made,) = self.group.results()
        return {**self._end(name), "content": made.text}

    async def stream(self, name: str, number: str) -> AsyncGenerator[dict[str, Any], None]:
        """The answer in pieces."""
        async with aclosing(self.group.stream()) as outputs:
            async for _, output in outputs:
                if output.text:
                    yield {"index": 0, "content": output.text, "stop": False}
        yield {**self._end(name), "content": ""}

    def _end(self, name: str) -> dict[str, Any]:
        (made,) = self.group.results()
        times, usage = made.timings, made.usage
        generated_seconds = times.total - times.first_token
        kinds = {"length": "limit", "time": "limit"}
        return {
            "index": 0,
            "model": name,
            "stop": True,
            "stop_type": "word"
            if isinstance(made.stop_reason, str)
            else kinds.get(made.finish_reason or "", "eos"),
            "stopping_word": made.stop_reason if isinstance(made.stop_reason, str) else "",
            "tokens_predicted": usage.generated_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "truncated": False,
            "timings": {
                "prompt_n": usage.prompt_tokens - usage.cached_tokens,
                "prompt_ms": 1e3 * times.prefill,
                "predicted_n": usage.generated_tokens,
                "predicted_ms": 1e3 * generated_seconds,
                "predicted_per_second": made.tokens_per_second,
            },
        }
