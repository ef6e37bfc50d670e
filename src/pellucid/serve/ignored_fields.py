"""Request fields that are accepted and change nothing, with the reasons.

Clients send these fields to all servers. A field that has no effect and is not listed here is refused. docs/serving.md
shows this table, and a test compares the answers with and without each field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Meta

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


def is_ignored(schema: Mapping[str, Any]) -> bool:
    """True if a field with this schema changes nothing and its value is not checked."""
    return "properties" not in schema and str(schema.get("description", "")).startswith("Changes nothing")


def ignored(field: str) -> Meta:
    """Annotation of a Struct's field that changes nothing."""
    return Meta(**ignored_schema(field))


def table() -> list[str]:
    """Lines of the table in docs/serving.md."""
    rows = [f"| {', '.join(f'`{field}`' for field in fields)} | {why} |" for why, fields in REASONS.items()]
    return ["| field | why it changes nothing |", "|---|---|", *rows]
