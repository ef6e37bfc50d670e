"""Fields of Ollama's bodies: requests, parts of responses, descriptions of models.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from pellucid.base_llm import BaseLLM
from pellucid.engine.output import Generation
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, brief
from pellucid.sample.logprobs import joined
from pellucid.serve import request_body as bodies
from pellucid.serve.api import NO_DETAILS, ErrorDetails
from pellucid.serve.chat.chat_run import chat_style
from pellucid.serve.chat.messages import MAX_TOOLS, ChatMessage, FunctionFields
from pellucid.serve.generation_options import LOGPROBS, checked_options, generation_options, ignored_schema
from pellucid.serve.json_schema import closed_object
from pellucid.serve.openai_parts import chat_logprobs, receipt_field, scores_field
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.infill import infill_tokens
from pellucid.util.checks import real
from pellucid.weights.checkpoint import main_format, parameter_count, stored_bytes

REASONS = {"stop": "stop", "until": "stop", "probe": "stop", "length": "length", "time": "length"}


def timestamp(seconds: float = 0.0) -> str:
    """Timestamp in Ollama's form, ``seconds`` from now."""
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def chunk(name: str, **content: Any) -> dict[str, Any]:
    """A chunk of a response, but not the last chunk."""
    return {"model": name, "created_at": timestamp(), **content, "done": False}


def last_chunk(name: str, generation: Generation, **content: Any) -> dict[str, Any]:
    """Last chunk of a response, or a complete response. Durations are in nanoseconds."""
    times, usage = generation.timings, generation.usage
    return {
        **chunk(name, **content),
        "done": True,
        "done_reason": REASONS.get(generation.finish_reason or "stop", "stop"),
        "total_duration": round(1e9 * times.total),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": round(1e9 * times.prefill),
        "eval_count": usage.generated_tokens,
        "eval_duration": round(1e9 * max(times.total - times.first_token, 0.0)),
        **receipt_field(generation),
    }


@dataclass
class ChunkLogprobs:
    """Log-probabilities and scores of probes of the only sequence of ``group``, chunk by chunk.

    ``sent`` counts the tokens of the chunks so far.
    """

    group: Request
    tokenizer: Tokenizer
    sent: int = 0

    def until(self, stop: int | None) -> dict[str, Any]:
        """Fields of a chunk: the tokens since the last chunk, before token ``stop`` (None: all tokens).

        Empty if neither log-probabilities nor scores were requested.
        """
        # A request on a cluster stores all tokens of a message before it streams the first token. The chunk therefore
        # needs the number of streamed tokens, not the number of stored tokens.
        output, alternatives, first = self.group.outputs[0], self.group.options.logprobs, self.sent
        self.sent = len(output.ids) if stop is None else stop
        scores = scores_field(output, self.tokenizer, first, stop)
        if alternatives is None:
            return scores
        rows = joined(output.logprobs[first:stop], alternatives)
        return {"logprobs": chat_logprobs(rows, self.tokenizer)["content"], **scores}


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    return {"error": message}


GENERATION = generation_options("watch", *LOGPROBS)
OPTIONS = bodies.BodyType(
    bodies.Fields,
    bodies.BodyRules(
        options=GENERATION,
        renamed={"num_predict": "max_new_tokens", "repeat_penalty": "repetition_penalty"},
        defaults={"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0},
        absent={"num_predict": (-1, -2), "seed": (-1,)},
        ignored=frozenset(
            {
                *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "use_mmap", "numa"),
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


class OllamaFields(bodies.ModelFields, frozen=True, kw_only=True):
    """Fields of all requests. Older clients send the model's name as ``name``."""

    name: str | None = None


class GenerateOptions(OllamaFields, frozen=True, kw_only=True):
    """Fields of requests that generate."""

    keep_alive: str | float | None = None
    stream: bool = True
    format: Annotated[Literal["json", ""] | dict[str, Any] | None, Meta(title="json or a JSON schema")] = None
    options: Annotated[dict[str, Any], Meta(extra_json_schema=dict(OPTIONS.schema))] = field(default_factory=dict)
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool = False
    top_logprobs: bodies.TopLogprobs | None = None

    def __post_init__(self) -> None:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs}: needs logprobs=true")

    @property
    def answer_schema(self) -> Any:
        if isinstance(self.format, dict):
            return self.format  # {} is any JSON
        return {"type": "object"} if self.format == "json" else None

    def variables(self, llm: BaseLLM[Any]) -> dict[str, Any]:
        if self.think is None:
            return {}
        if self.think and not chat_style(llm.tokenizer).reasons:
            raise InvalidRequest(
                f"think={brief(self.think)}: this model's chat template has no reasoning; leave it out"
            )
        effort = {} if isinstance(self.think, bool) else {"reasoning_effort": self.think}
        return {"enable_thinking": bool(self.think), **effort}


class OllamaTool(bodies.Fields, frozen=True):
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
    context: Sequence[bodies.TokenId] = ()


class IdleFields(OllamaFields, frozen=True, kw_only=True):
    """Common fields of /api/embed and /api/embeddings."""

    keep_alive: str | float | None = None
    options: Annotated[dict[str, Any], Meta(extra_json_schema=IDLE_OPTIONS)] = field(default_factory=dict)


class EmbedFields(IdleFields, frozen=True, kw_only=True):
    """Fields of /api/embed. ``prompt_name`` is Pellucid's: the prompt before each text."""

    input: bodies.Texts
    truncate: bool = True
    dimensions: bodies.Count | None = None
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


RULES = bodies.BodyRules(options=GENERATION, only={"images": [], "template": ""})
"""``template`` is not supported, because it is a Go template, and the server uses the model's own Jinja template."""
CHAT = bodies.BodyType(ChatOptions, RULES)
GENERATE = bodies.BodyType(PromptOptions, RULES)
EMBED = bodies.BodyType(EmbedFields)
OLD_EMBED = bodies.BodyType(OldEmbedFields)
SHOW = bodies.BodyType(ShowFields)
PULL = bodies.BodyType(PullFields, bodies.BodyRules(only={"insecure": False}), required=("model",))


def options_of(body: bodies.RequestBody[Any], recommended: Mapping[str, Any]) -> dict[str, Any]:
    """Generation options of a request. They may be in the field ``options`` or at the top level of the body."""
    fields: GenerateOptions = body.fields
    if repeated := fields.options.keys() & body.given.keys():
        raise InvalidRequest(f"{min(repeated)} is both in options and at the top level: remove one of the two")
    inner, rules = OPTIONS.decode(fields.options, "options"), OPTIONS.rules
    options = checked_options({**inner.given, **body.given}, rules.renamed, recommended or rules.defaults)
    return {**options, "logprobs": fields.top_logprobs or 0} if fields.logprobs else options


def refuse_options(body: bodies.RequestBody[Any], known: tuple[str, ...], what: str) -> None:
    """For requests that do not generate: reject every generation option, and every other unknown field.

    A field is unknown if it is neither in ``known`` nor common to all requests. ``what`` is the end of the error.
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
    """
    if isinstance(value, str) and (duration := _DURATION.fullmatch(value)):
        seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(_PART, duration[2]))
        value = -1.0 if duration[1] and seconds else seconds
    if isinstance(value, str):
        raise InvalidRequest(
            f"keep_alive={brief(value)}: must be a number of seconds, or a duration such as 5m or 1h30m"
        )
    return None if value < 0 else real("keep_alive", value, 0, LONGEST, "-1 is no limit")


# Descriptions of models in Ollama's form.

FOREVER = "9999-12-31T00:00:00Z"


def model_entry(name: str, llm: BaseLLM[Any] | None) -> dict[str, Any]:
    """Entry of a list of models. Facts from the file are included if the model is loaded."""
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(),
        "size": 0 if llm is None else stored_bytes(llm.checkpoint),
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": _details(llm),
        **({} if llm is None else {"capabilities": capabilities(llm)}),
    }


def running_model(name: str, llm: BaseLLM[Any], expires_in: float | None) -> dict[str, Any]:
    """A loaded model. ``expires_in`` is the number of seconds until an unused model is unloaded (None: no limit)."""
    expires = FOREVER if expires_in is None else timestamp(expires_in)
    return {**model_entry(name, llm), "expires_at": expires, "size_vram": 0, "context_length": llm.context}


def model_details(llm: BaseLLM[Any], verbose: bool = False) -> dict[str, Any]:
    """Description of a model. ``verbose`` adds its tensors."""
    tensors = [
        {"name": name, "type": one.format, "shape": list(one.shape)}
        for name, one in (llm.checkpoint.tensors.items() if verbose else ())
    ]
    return {
        **({"tensors": tensors} if verbose else {}),
        "modelfile": "",
        "parameters": "\n".join(f"{name} {value}" for name, value in llm.recommended.items()),
        "template": llm.tokenizer.chat_template or "",
        "details": _details(llm),
        "model_info": {
            "general.architecture": llm.spec.family,
            "general.parameter_count": parameter_count(llm.checkpoint),
            f"{llm.spec.family}.context_length": llm.context,
            f"{llm.spec.family}.embedding_length": llm.spec.embedding.width,
            f"{llm.spec.family}.block_count": len(llm.spec.blocks),
        },
        "capabilities": capabilities(llm),
        "modified_at": timestamp(),
    }


def capabilities(llm: BaseLLM[Any]) -> list[str]:
    """Capabilities of a model, in Ollama's words where Ollama has one; else the task, or "rerank"."""
    task, labels = llm.spec.task, llm.spec.labels
    if task in ("embed", "sparse", "tokens"):
        return ["embedding"]
    if task == "classify" and labels is not None and labels.relevance is not None:
        return ["rerank"]
    if task != "generate":
        return [task]
    style, names = chat_style(llm.tokenizer), ["completion"]
    names += ["tools"] if style.calls else []
    names += ["thinking"] if style.reasons else []
    return names + (["insert"] if infill_tokens(llm.tokenizer) else [])


def _details(llm: BaseLLM[Any] | None) -> dict[str, Any]:
    if llm is None:
        return {"parent_model": "", "format": "", "family": "", "families": []}
    family, count = llm.spec.family, parameter_count(llm.checkpoint)
    return {
        "parent_model": "",
        "format": llm.checkpoint.kind,
        "family": family,
        "families": [family],
        "parameter_size": f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M",
        "quantization_level": main_format(llm.checkpoint),
    }
