"""Fields that Ollama's requests and answers have in common.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pellucid.engine.output import Generation
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import Body, BodyForm
from pellucid.serve.problem import NOTHING_MORE, Problem

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
"""The field ``options``. Those about the machine are the server's own."""
OLLAMA_BODY = BodyForm(harmless=frozenset({"keep_alive", "template"}), only={"images": []})
EMBED_BODY = BodyForm(harmless=frozenset({"keep_alive", "options"}))
REASONS = {"stop": "stop", "until": "stop", "length": "length", "time": "length"}


def options_of(body: Body, recommended: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a generation.

    Raises:
        InvalidRequest: one is unknown or wrong.
    """
    given, others = body.mapping("options"), body.rest()
    if twice := given.keys() & others.keys():
        raise InvalidRequest(f"{min(twice)} is in options and beside it: leave one of them out")
    return Body({**given, **others}, OPTIONS).options(recommended)


def shape_of(body: Body) -> Any:
    """The JSON schema of the field ``format``; None for any text."""
    wanted = body.take("format", "")
    if wanted == "json":
        return {"type": "object"}
    if isinstance(wanted, Mapping):
        return wanted
    if wanted:
        raise InvalidRequest(f"format={brief(wanted)}: must be json or a JSON schema")
    return None


def thinking_of(body: Body) -> dict[str, Any]:
    """The template's variables for the field ``think``."""
    think = body.take("think")
    if think is None:
        return {}
    if think in ("low", "medium", "high"):
        return {"enable_thinking": True, "reasoning_effort": think}
    if not isinstance(think, bool):
        raise InvalidRequest(f"think={brief(think)}: must be true, false, low, medium or high")
    return {"enable_thinking": think}


def stamp() -> str:
    """The time, as answers have it."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def piece(name: str, **content: Any) -> dict[str, Any]:
    """A piece of an answer that is not the last."""
    return {"model": name, "created_at": stamp(), **content, "done": False}


def ended(name: str, made: Generation, **content: Any) -> dict[str, Any]:
    """The last piece of an answer; durations are in nanoseconds."""
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


def error_body(status: int, message: str, problem: Problem = NOTHING_MORE) -> dict[str, Any]:
    """The body of an error."""
    return {"error": message}
