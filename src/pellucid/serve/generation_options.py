"""The options of requests: generation options with their JSON schemas and their names in other servers' APIs.

Fields that change nothing stand here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from msgspec import Meta

from pellucid.errors import InvalidRequest, brief
from pellucid.sample import checking
from pellucid.sample.options import CHECKS, Options, check_of
from pellucid.sample.recommended import with_recommended
from pellucid.sample.step import steps
from pellucid.serve.json_schema import Schema, closed, closed_object
from pellucid.trace.control_vector import MAX_SCALE
from pellucid.util.checks import real

# Request fields that are accepted and change nothing, with the reasons.
#
# Clients send these fields to all servers. A field that has no effect and is not listed here is refused.
# docs/serving.md shows this table, and a test compares the answers with and without each field.

REASONS: Mapping[str, Sequence[str]] = {
    "it names the client; the server stores nothing about clients": ("user", "safety_identifier", "metadata"),
    "chat completions are not stored": ("store",),
    "all requests have the same service tier; `priority` orders them": ("service_tier",),
    "all prompts use the prefix cache": (
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "cache_control",
        "cache_prompt",
        "n_cache_reuse",
    ),
    "no chat template has a variable for it": ("verbosity",),
    "it could only save time; `prompt_lookup` does": ("prediction",),
    "all requests run here, at one speed, and nobody is billed": (
        *("speed", "inference_geo", "billing_policy", "fallback_credit_token"),
    ),
    "the server refuses no request for its subject": ("fallbacks",),
    "answers report the reused tokens of the prefix cache": ("diagnostics",),
    "the schema of an answer is always enforced": (
        "response_format.json_schema.name",
        "response_format.json_schema.description",
        "response_format.json_schema.strict",
        "text.format.name",
        "text.format.description",
        "text.format.strict",
    ),
    "events are not padded": ("stream_options.include_obfuscation",),
    "reasoning is returned complete and unencrypted": (
        "include",
        "reasoning.summary",
        "reasoning.generate_summary",
        "thinking.display",
    ),
    "`max_tokens` limits reasoning and answer together": ("thinking.budget_tokens",),
    "nothing is removed from a conversation": ("context_management",),
    "it is not a part of the prompt": (
        *("input[].id", "input[].status", "input[].phase", "input[].encrypted_content"),
        *("input[].content[].annotations", "input[].content[].logprobs"),
        *("content[].citations", "content[].signature", "content[].data", "content[].caller"),
    ),
    "the model sees only the text of a tool's result": ("content[].is_error",),
    "arguments are always streamed": ("tools[].eager_input_streaming",),
    "the server has its own settings for its machine": (
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "use_mmap", "numa"),
        *("low_vram", "vocab_only", "use_mlock", "f16_kv", "logits_all", "embedding_only"),
    ),
    "a new line is penalized like other tokens": ("penalize_newline",),
    "`count_tokens`, `input_tokens` and `/apply-template` only build the prompt, and this field is not part of it": (
        *("output_format", "output_config.format", "tools[].strict", "tool_choice.disable_parallel_tool_use"),
        *("text", "parallel_tool_calls", "tools[].function.strict"),
    ),
    "a sentence encoder has no generation options": ("options",),
    "the engine has no slots": ("id_slot",),
    "a full context is not shifted: the text ends": ("n_keep", "n_discard"),
    "it could only end a text earlier; use `n_predict` and `stop`": ("t_max_prompt_ms", "t_max_predict_ms", "n_indent"),
    "it configures internals of llama.cpp": ("backend_sampling", "sse_ping_interval", "adaptive_decay"),
}
"""Fields by reason. A dot separates the names of nested objects; ``[]`` stands for each item of a list."""
IGNORED: Mapping[str, str] = {field: why for why, fields in REASONS.items() for field in fields}
"""Reason for each field."""
LLAMACPP = frozenset(
    {
        *("cache_prompt", "id_slot", "n_cache_reuse", "n_keep", "n_discard", "sse_ping_interval"),
        *("t_max_prompt_ms", "t_max_predict_ms", "n_indent", "backend_sampling", "adaptive_decay"),
    }
)
"""Fields that llama.cpp's clients send to all paths."""


def ignored_schema(field: str) -> dict[str, Any]:
    """Schema of a field that changes nothing."""
    return {"description": f"Changes nothing: {IGNORED[field]}."}


def ignored(field: str) -> Meta:
    """Annotation of a Struct's field that changes nothing."""
    return Meta(**ignored_schema(field))


def table() -> list[str]:
    """Lines of the table in docs/serving.md."""
    rows = [f"| {', '.join(f'`{field}`' for field in fields)} | {why} |" for why, fields in REASONS.items()]
    return ["| field | why it changes nothing |", "|---|---|", *rows]


# The generation options of requests: their JSON schemas, and their names in other servers' APIs.
#
# The sampler steps and ``Options`` declare the options and check their values, so every API accepts the options of a
# new sampler step.

OPENAI_DEFAULTS: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""The defaults of OpenAI and Anthropic, which leave the model's distribution unchanged."""
ALIASES: Mapping[str, str] = {
    "n_predict": "max_new_tokens",
    "repeat_penalty": "repetition_penalty",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choices",
    "guided_grammar": "grammar",
}
"""Option names of llama.cpp's and vLLM's clients, which every API accepts."""
ABSENT: Mapping[str, Sequence[Any]] = {"n_predict": (-1,)}
"""Names of options, with the values that count as an absent field."""
STRUCTURED: Mapping[str, str] = {"json": "json_schema", "regex": "regex", "choice": "choices", "grammar": "grammar"}
"""Option for each key of vLLM's ``structured_outputs``."""
MAX_BIAS = 100.0
TEXT: Schema = {"type": "string"}
NAMES: Schema = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
TEXTS: Schema = {"anyOf": [NAMES["items"], NAMES]}
IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
SCHEMAS: Mapping[str, Schema] = {
    "stop": TEXTS,
    "stop_token_ids": IDS,
    "samplers": {"type": "array", "items": {"type": "string", "enum": list(steps())}},
    "keep_special": {"anyOf": [{"type": "boolean"}, IDS]},
    "logprobs_of": {"type": "string", "enum": ["logits", "chain"]},
    "banned": IDS,
    "allowed": IDS,
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
    "dry_sequence_breakers": TEXTS,
    "json_schema": {"type": "object"},
    "regex": TEXT,
    "choices": NAMES,
    "grammar": TEXT,
}
"""Schemas of options whose checks do not state a type."""
PYTHON_ONLY = ("until", "sampling")
"""Options that JSON cannot express."""
CONTROL_SCHEMAS: Mapping[str, Schema] = {
    "steer": {
        "description": "Scales of registered control vectors, by name.",
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": -MAX_SCALE, "maximum": MAX_SCALE},
    },
    "probes": {
        "description": "Names of registered probes, whose scores come with each token. With stop_above, a score above "
        "the limit ends the text.",
        "anyOf": [
            {"type": "array", "items": {"type": "string"}},
            {"type": "object", "additionalProperties": closed_object({"stop_above": {"type": "number"}})},
        ],
    },
}
CONTROL = tuple(CONTROL_SCHEMAS)
"""Options of control vectors and probes, for requests that have edits."""
LOGPROBS = ("logprobs", "prompt_logprobs", "logprobs_of")
"""Options of log-probabilities, for APIs whose responses have no log-probabilities."""


def generation_options(*without: str) -> dict[str, Schema]:
    """Schemas of the generation options. An API excludes options whose results its responses do not show."""
    schemas: dict[str, Schema] = {}
    for step in steps().values():
        for one in fields(step):
            if "check" in one.metadata:
                schemas[one.name] = _schema(one.metadata["check"], one.default, one.metadata["help"])
    for one in fields(Options):
        if one.name not in PYTHON_ONLY:
            schemas[one.name] = _schema(CHECKS.get(one.name), one.default)
    for name, schema in SCHEMAS.items():
        about = {key: value for key, value in schemas[name].items() if key == "description"}
        schemas[name] = {**about, **schema}
    schemas |= {name: schemas[option] for name, option in ALIASES.items()}
    structured = {name: schemas[option] for name, option in STRUCTURED.items()}
    schemas["structured_outputs"] = closed_object({"json_object": {"type": "boolean"}, **structured})
    schemas |= CONTROL_SCHEMAS
    schemas["priority"] = {"type": "integer", "minimum": -100, "maximum": 100}
    schemas["deadline"] = {"type": "number", "minimum": 0.001}
    return {name: schema for name, schema in schemas.items() if name not in without}


def _schema(check: Any, default: Any, text: str = "") -> dict[str, Any]:
    """Schema of an option, from its check or its default."""
    schema: dict[str, Any] = {"description": text} if text else {}
    if isinstance(check, checking.whole):
        return {**schema, "type": "integer", "minimum": check.low, "maximum": check.high}
    if isinstance(check, checking.real):
        least = "exclusiveMinimum" if check.above else "minimum"
        return {**schema, "type": "number", least: check.low, "maximum": check.high}
    return {**schema, **({"type": "boolean"} if isinstance(default, bool) else {})}


def checked_options(
    given: Mapping[str, Any], renamed: Mapping[str, str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert options under a client's names to options under Pellucid's names.

    ``renamed`` maps the API's names to Pellucid's. ``defaults`` are used where the request has no value.
    """
    given = dict(given)
    if (bias := given.get("logit_bias")) is not None:
        given["logit_bias"] = _bias(bias)
    options = _structured(given.pop("structured_outputs", {}))
    names, known = dict.fromkeys(options, "structured_outputs"), {**ALIASES, **renamed}
    for name, value in given.items():
        option = known.get(name, name)
        # An error names the field as the client wrote it.
        check = check_of(option) if option != name else None
        value = check(name, value) if check else value
        # Some clients send one value under the names of several servers.
        if option in options and options[option] != value:
            raise InvalidRequest(
                f"{names[option]}={brief(options[option])} and {name}={brief(value)} are names of one option with "
                "different values: remove one of the two"
            )
        options[option], names[option] = value, name
    if "json_schema" in options:
        options["json_schema"] = closed(options["json_schema"])
    return with_recommended(options, defaults)


def add_stop_tokens(options: dict[str, Any], tokens: Sequence[int]) -> None:
    """Add stop tokens to options. If ``stop_token_ids`` is not a list, it stays unchanged and is rejected later."""
    given = options.get("stop_token_ids") or []
    if tokens and isinstance(given, list):
        options["stop_token_ids"] = [*given, *tokens]


def _structured(given: Any) -> dict[str, Any]:
    """Convert vLLM's ``structured_outputs`` to options."""
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"structured_outputs={brief(given)}: must be an object")
    options = dict[str, Any]()
    for name, value in given.items():
        if name in STRUCTURED and value is not None:
            options[STRUCTURED[name]] = value
        elif name == "json_object" and value is True and given.get("json") is None:
            options["json_schema"] = {"type": "object"}
        elif value is not None and value is not False:
            raise InvalidRequest(
                f"structured_outputs.{name}={brief(value)}: not supported; give one of json, json_object=true, "
                f"regex, choice and grammar"
            )
    return options


def _bias(value: Any) -> dict[int, float]:
    """Convert OpenAI's ``logit_bias``, which maps token ids (as strings) to numbers from -100 to 100."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"logit_bias={brief(value)}: must be an object of token ids and numbers")
    biases = {}
    for token, bias in value.items():
        if not str(token).isascii() or not str(token).isdigit():
            raise InvalidRequest(f"logit_bias has {brief(token)}: its keys must be token ids")
        biases[int(str(token)[:18])] = real(f"logit_bias[{token}]", bias, -MAX_BIAS, MAX_BIAS)
    return biases
