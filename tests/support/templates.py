"""Chat templates and conversations for tests, rendered by transformers too if it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pellucid.tokenize.chat import conversation
from pellucid.tokenize.chat.template import LIMITS, RenderLimits, render

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}
{% endif %}{% endfor %}"""
TOOLS = """{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b') %}{% endif -%}
{%- set ns = namespace(system='', last=messages | length - 1) -%}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content %}{% set messages = messages[1:] %}
{%- endif -%}
<|system|>{{ ns.system }}{% if tools is not none %}
{% for tool in tools %}
{{ tool | tojson(indent=4) }}
{% endfor %}{% endif %}<|end|>
{%- macro text(content) -%}
{%- if content is string %}{{ content }}{% elif content is iterable %}
{%- for part in content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif -%}
{%- endmacro -%}
{%- for m in messages -%}
<|{{ m.role }}|>{% if m.reasoning_content is defined %}<think>{{ m.reasoning_content }}</think>{% endif -%}
{%- if m.tool_calls %}{% for call in m.tool_calls %}{% set call = call.function or call %}
{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}{% endfor -%}
{%- elif m.role == 'assistant' %}{% generation %}{{ text(m.content) }}{% endgeneration %}
{%- else %}{{ text(m.content) }}{% endif %}<|end|>
{%- if loop.index0 > 50 %}{% break %}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}"""
TEMPLATES = (CHATML, ALTERNATING, TOOLS)
"""Short versions of published templates."""


def chat(
    source: str,
    messages: Any,
    tools: Any = None,
    limits: RenderLimits = LIMITS,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """``Tokenizer.apply_chat_template`` with limits and without a tokenizer."""
    given = {**variables, "tools": tools, "add_generation_prompt": add_generation_prompt}
    plain = conversation.template_variables({**NAMED, "documents": None, **given})
    plain["messages"] = conversation.conversation(messages)
    return render(source, plain, limits)


def transformers_chat() -> Callable[..., str] | None:
    """transformers' ``apply_chat_template`` with the arguments of ``chat``; None if it is not installed."""
    try:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        return None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})), **NAMED)

    def chat(
        source: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Any = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        return tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **variables,
        )

    return chat


USER, SYSTEM = {"role": "user", "content": "Hi! <é> \"'"}, {"role": "system", "content": "Be brief.\n"}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "get", "arguments": {"city": "Köln", "n": 1.5}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "get", "tool_call_id": "abcdefghi", "content": '{"t": 3}'}
ANSWER = {"role": "assistant", "content": "  Cold. ", "tool_calls": None}
PARTS = {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": " now?"}]}
THOUGHT = {"role": "assistant", "content": "Warm.", "reasoning": "It is June."}
TOOL = {
    "type": "function",
    "function": {
        "name": "get",
        "description": "The weather.\nNow.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where"}, "n": {"type": ["number", "null"]}},
            "required": ["city"],
        },
        "return": {"type": "string"},
    },
}
CONVERSATIONS = (
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER, USER],
    [SYSTEM, USER, CALLING, RESULT, ANSWER, PARTS],
    [USER, THOUGHT, USER],
    [USER, {**THOUGHT, "thinking": "It is July."}],
    [USER, CALLING, RESULT],
)
