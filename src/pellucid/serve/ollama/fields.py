"""Common fields of Ollama's requests and responses.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pellucid.engine.output import Generation
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.logprobs import TokenLogprobs, joined
from pellucid.serve.body import MOST_LOGPROBS, Body, BodyForm
from pellucid.serve.chat.template import chat_style
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import chat_logprobs
from pellucid.serve.problem import NOTHING_MORE, Problem
from pellucid.tokenize import Tokenizer
from pellucid.util.checks import real

OPTIONS = BodyForm(
    harmless=frozenset(
        {
            *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "use_mmap", "numa"),
            *("low_vram", "vocab_only", "use_mlock", "penalize_newline", "f16_kv", "logits_all"),
        }
    ),
    only={"tfs_z": 1.0},
    renamed={"num_predict": "max_new_tokens", "repeat_penalty": "repetition_penalty"},
    defaults={"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0},
    absent={"num_predict": (-1, -2), "seed": (-1,)},
)
"""Form of the field ``options``. Options of the machine are ignored: the server has its own."""
OLLAMA_BODY = BodyForm(only={"images": [], "template": ""})
"""Form of request bodies. ``template`` would be a Go template; the server uses the model's own Jinja template."""
PULL_BODY = BodyForm(only={"insecure": False})
REASONS = {"stop": "stop", "until": "stop", "length": "length", "time": "length"}
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = r"(\d{1,9}(?:\.\d{0,9})?)(h|ms|us|µs|ns|m|s)"
_DURATION = re.compile(rf"(-?)((?:{_PART})+|0)")
LONGEST = 1e8  # seconds


def options_of(body: Body, recommended: Mapping[str, Any]) -> dict[str, Any]:
    """Generation options of a body.

    Raises:
        InvalidRequest: an option is unknown or wrong.
    """
    logprobs, top = body.flag("logprobs"), body.count("top_logprobs", 0, MOST_LOGPROBS)
    if top is not None and not logprobs:
        raise InvalidRequest(f"top_logprobs={top}: needs logprobs=true")
    given, others = body.mapping("options"), body.rest()
    if twice := given.keys() & others.keys():
        raise InvalidRequest(f"{min(twice)} is in options and beside it: remove one of the two")
    options = Body({**given, **others}, OPTIONS).options(recommended)
    return {**options, "logprobs": top or 0} if logprobs else options


def no_options(body: Body, what: str) -> None:
    """Reject generation options and unread fields, for requests that do not generate.

    Raises:
        InvalidRequest: the body has such options or fields.
    """
    for place, left in (("options.", Body(body.mapping("options"), OPTIONS).rest()), ("", body.rest())):
        if left:
            raise InvalidRequest(f"unknown field {brief(place + min(left))}: {what}")


def keep_alive_of(value: Any) -> float | None:
    """Seconds that a model stays loaded after its last request, from the field ``keep_alive``; None: no limit.

    The value is a number of seconds, or a Go duration such as "5m" or "1h30m". A negative value means no limit.

    Raises:
        InvalidRequest: the value is neither, or is too large.
    """
    if isinstance(value, str) and (found := _DURATION.fullmatch(value)):
        value = sum(float(number) * UNITS[unit] for number, unit in re.findall(_PART, found[2]))
        value = -1.0 if found[1] and value else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequest(
            f"keep_alive={brief(value)}: must be a number of seconds, or a duration such as 5m or 1h30m"
        )
    return None if value < 0 else real("keep_alive", value, 0, LONGEST, "-1 is no limit")


def shape_of(body: Body) -> Any:
    """JSON schema of the field ``format``; None: any text."""
    wanted = body.take("format", "")
    if wanted == "json":
        return {"type": "object"}
    if isinstance(wanted, Mapping):
        return wanted
    if wanted:
        raise InvalidRequest(f"format={brief(wanted)}: must be json or a JSON schema")
    return None


def thinking_of(body: Body, llm: ServedModel) -> dict[str, Any]:
    """Chat template variables for the field ``think``.

    Raises:
        InvalidRequest: the value is unknown, or the model's template has no reasoning.
    """
    think = body.take("think")
    if think is None:
        return {}
    if not isinstance(think, bool) and think not in ("low", "medium", "high"):
        raise InvalidRequest(f"think={brief(think)}: must be true, false, low, medium or high")
    if think and not chat_style(llm.tokenizer).reasons:
        raise InvalidRequest(
            f"think={brief(think)}: this model's chat template has no reasoning; leave it out"
        )
    effort = {} if isinstance(think, bool) else {"reasoning_effort": think}
    return {"enable_thinking": bool(think), **effort}


def stamp(seconds: float = 0.0) -> str:
    """Timestamp in Ollama's form, ``seconds`` from now."""
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def piece(name: str, **content: Any) -> dict[str, Any]:
    """A chunk of a response, before the last chunk."""
    return {"model": name, "created_at": stamp(), **content, "done": False}


def ended(name: str, made: Generation, **content: Any) -> dict[str, Any]:
    """Last chunk of a response, or a complete response. Durations are in nanoseconds."""
    times, usage = made.timings, made.usage

    def nanoseconds(seconds: float) -> int:
        return round(1e9 * seconds)

    return {
        **piece(name, **content),
        "done": True,
        "done_reason": REASONS.get(made.finish_reason or "stop", "stop"),
        "total_duration": nanoseconds(times.total),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": nanoseconds(times.prefill),
        "eval_count": usage.generated_tokens,
        "eval_duration": nanoseconds(max(times.total - times.first_token, 0.0)),
    }


@dataclass
class PieceLogprobs:
    """Log-probabilities of a group's only sequence, by chunk. ``heard`` counts the streamed tokens."""

    group: Request
    tokenizer: Tokenizer
    heard: int = 0
    told: int = 0

    def all(self) -> dict[str, Any]:
        """Field of a complete response; empty if no log-probabilities were requested."""
        return self._field(self.group.outputs[0].logprobs)

    def next(self) -> dict[str, Any]:
        """Field of a chunk: the tokens streamed since the last chunk."""
        # Counts are needed because a cluster stores all tokens of a frame before it streams the first.
        first, self.told = self.told, self.heard
        return self._field(self.group.outputs[0].logprobs[first : self.heard])

    def _field(self, rows: list[TokenLogprobs]) -> dict[str, Any]:
        alternatives = self.group.options.logprobs
        if alternatives is None:
            return {}
        return {"logprobs": chat_logprobs(joined(rows, alternatives), self.tokenizer)["content"]}


def error_body(status: int, message: str, problem: Problem = NOTHING_MORE) -> dict[str, Any]:
    """Error body in Ollama's form."""
    return {"error": message}
