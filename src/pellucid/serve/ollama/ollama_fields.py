"""Fields of Ollama's request bodies.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.chat.chat_style import chat_style
from pellucid.serve.chat.messages import ChatMessage
from pellucid.serve.chat.tools import MAX_TOOLS, FunctionFields
from pellucid.serve.generation_options import LOGPROBS, checked_options, generation_options
from pellucid.serve.ignored_fields import ignored_schema
from pellucid.serve.json_schema import closed_object
from pellucid.serve.request_body import (
    BodyRules,
    BodyType,
    Count,
    Fields,
    ModelFields,
    RequestBody,
    Texts,
    TokenId,
    TopLogprobs,
)
from pellucid.serve.served_model import ServedModel
from pellucid.util.checks import real

GENERATION = generation_options("watch", *LOGPROBS)
OPTIONS = BodyType(
    Fields,
    BodyRules(
        options=GENERATION,
        renamed={"num_predict": "max_new_tokens", "repeat_penalty": "repetition_penalty"},
        defaults={"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0},
        absent={"num_predict": (-1, -2), "seed": (-1,)},
        ignored=frozenset(
            {
                *(
                    "num_ctx",
                    "num_batch",
                    "num_gpu",
                    "main_gpu",
                    "num_thread",
                    "num_keep",
                    "use_mmap",
                    "numa",
                ),
                *("low_vram", "vocab_only", "use_mlock", "penalize_newline", "f16_kv", "logits_all"),
                "embedding_only",
            }
        ),
        only={"tfs_z": 1.0},
    ),
)
"""The field ``options``. Options about the machine are ignored, because the server has its own settings."""
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = r"(\d{1,9}(?:\.\d{0,9})?)(h|ms|us|µs|ns|m|s)"
_DURATION = re.compile(rf"(-?)((?:{_PART})+|0)")
LONGEST = 1e8  # seconds
IDLE_OPTIONS = {
    **closed_object({name: ignored_schema(name) for name in sorted(OPTIONS.rules.ignored)}),
    **ignored_schema("options"),
}


class OllamaFields(ModelFields, frozen=True, kw_only=True):
    """Fields of all requests. Older clients send the model's name as ``name``."""

    name: str | None = None


class GenerateOptions(OllamaFields, frozen=True, kw_only=True):
    """Fields of requests that generate."""

    keep_alive: str | float | None = None
    stream: bool = True
    format: Annotated[Literal["json", ""] | dict[str, Any] | None, Meta(title="json or a JSON schema")] = None
    options: Annotated[dict[str, Any], Meta(extra_json_schema=dict(OPTIONS.schema))] = field(
        default_factory=dict
    )
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None

    def __post_init__(self) -> None:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs}: needs logprobs=true")

    @property
    def answer_schema(self) -> Any:
        """JSON schema of the answer; None: any text."""
        if isinstance(self.format, dict):
            return self.format  # {} is any JSON
        return {"type": "object"} if self.format == "json" else None

    def variables(self, llm: ServedModel) -> dict[str, Any]:
        """Chat template variables for the field ``think``.

        Raises:
            InvalidRequest: the model's template has no reasoning.
        """
        if self.think is None:
            return {}
        if self.think and not chat_style(llm.tokenizer).reasons:
            raise InvalidRequest(
                f"think={brief(self.think)}: this model's chat template has no reasoning; leave it out"
            )
        effort = {} if isinstance(self.think, bool) else {"reasoning_effort": self.think}
        return {"enable_thinking": bool(self.think), **effort}


class OllamaTool(Fields, frozen=True):
    """An entry of ``tools``."""

    function: FunctionFields
    type: Literal["function"] = "function"


class ChatOptions(GenerateOptions, frozen=True, kw_only=True):
    """Fields of /api/chat."""

    messages: Sequence[ChatMessage] = ()
    tools: Annotated[Sequence[OllamaTool], Meta(max_length=MAX_TOOLS)] = ()


class PromptOptions(GenerateOptions, frozen=True, kw_only=True):
    """Fields of /api/generate. ``context`` are the tokens of an earlier response."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    raw: bool = False
    context: Sequence[TokenId] = ()


class IdleFields(OllamaFields, frozen=True, kw_only=True):
    """Common fields of /api/embed and /api/embeddings."""

    keep_alive: str | float | None = None
    options: Annotated[dict[str, Any], Meta(extra_json_schema=IDLE_OPTIONS)] = field(default_factory=dict)


class EmbedFields(IdleFields, frozen=True, kw_only=True):
    """Fields of /api/embed. ``prompt_name`` is Pellucid's: the prompt before each text."""

    input: Texts
    truncate: bool = True
    dimensions: Count | None = None
    prompt_name: str | None = None


class OldEmbedFields(IdleFields, frozen=True, kw_only=True):
    """Fields of /api/embeddings."""

    prompt: str = ""


class ShowFields(OllamaFields, frozen=True, kw_only=True):
    """Fields of /api/show."""

    verbose: bool = False


class PullFields(OllamaFields, frozen=True, kw_only=True):
    """Fields of /api/pull."""

    stream: bool = True


RULES = BodyRules(options=GENERATION, only={"images": [], "template": ""})
"""``template`` is not supported, because it is a Go template, and the server uses the model's own Jinja template."""
CHAT = BodyType(ChatOptions, RULES)
GENERATE = BodyType(PromptOptions, RULES)
EMBED = BodyType(EmbedFields)
OLD_EMBED = BodyType(OldEmbedFields)
SHOW = BodyType(ShowFields)
PULL = BodyType(PullFields, BodyRules(only={"insecure": False}), required=("model",))


def options_of(body: RequestBody[Any], recommended: Mapping[str, Any]) -> dict[str, Any]:
    """Generation options of a request. They may be in the field ``options`` or at the top level of the body.

    Raises:
        InvalidRequest: an option is unknown or wrong.
    """
    fields: GenerateOptions = body.fields
    if repeated := fields.options.keys() & body.given.keys():
        raise InvalidRequest(
            f"{min(repeated)} is both in options and at the top level: remove one of the two"
        )
    inner, rules = OPTIONS.decode(fields.options, "options"), OPTIONS.rules
    options = checked_options({**inner.given, **body.given}, rules.renamed, recommended or rules.defaults)
    return {**options, "logprobs": fields.top_logprobs or 0} if fields.logprobs else options


def refuse_options(body: RequestBody[Any], known: tuple[str, ...], what: str) -> None:
    """For requests that do not generate: reject every generation option, and every other unknown field.

    A field is unknown if it is neither in ``known`` nor common to all requests. ``what`` is the end of the error.

    Raises:
        InvalidRequest: the body has generation options or other fields.
    """
    inner = OPTIONS.decode(body.fields.options, "options")
    extra = [f"options.{name}" for name in inner.given]
    extra += [
        name
        for name, value in body.raw.items()
        if value is not None and name not in (*known, "model", "name", "options", "keep_alive", *RULES.only)
    ]
    if extra:
        raise InvalidRequest(f"unknown field {brief(min(extra))}: {what}")


def keep_alive_of(value: str | float) -> float | None:
    """Seconds that a model stays loaded after its last request, from the field ``keep_alive``; None: no limit.

    The value is a number of seconds, or a Go duration such as "5m" or "1h30m". A negative value means no limit.

    Raises:
        InvalidRequest: the value is not a number or a duration, or is too large.
    """
    if isinstance(value, str) and (duration := _DURATION.fullmatch(value)):
        seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(_PART, duration[2]))
        value = -1.0 if duration[1] and seconds else seconds
    if isinstance(value, str):
        raise InvalidRequest(
            f"keep_alive={brief(value)}: must be a number of seconds, or a duration such as 5m or 1h30m"
        )
    return None if value < 0 else real("keep_alive", value, 0, LONGEST, "-1 is no limit")
