"""Formats of tool calls by their literals. The arguments are a JSON object, or have tags of their own."""

from __future__ import annotations

from pellucid.serve.chat.call_format import JsonCalls, TaggedCalls

# Formats of tool calls as JSON objects: Hermes, Qwen 2.5 and 3, Llama 3, Mistral, Cohere, Kimi, DeepSeek and
# others.

HERMES = JsonCalls(
    "hermes",
    marks=("<tool_call>", '"arguments"'),
    trigger="<tool_call>",
    before='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    after="}\n</tool_call>",
    between="\n",
    bare=r'\{{1,2}\s{0,8}"name":\s?"{name}",\s{0,8}"arguments":',
)


# A JSON list of calls in tags: Nemotron Nano 2, Apriel, Granite 3, Phi-4.


def _list(name: str, begin: str, end: str, *marks: str) -> JsonCalls:
    return JsonCalls(
        name,
        marks=marks,
        trigger=begin,
        begin=f"{begin}[",
        before='{"name": "',
        middle='", "arguments": ',
        after="}",
        between=", ",
        end=f"]{end}",
    )


NEMOTRON = _list("nemotron", "<TOOLCALL>", "</TOOLCALL>")
APRIEL = _list("apriel", "<tool_calls>", "</tool_calls>")
GRANITE3 = _list("granite3", "<|tool_call|>", "", "<|tool_call|> followed by a JSON list")
PHI4 = _list("phi4", "<|tool_call|>", "<|/tool_call|>", "<|tool_call|>", "<|/tool_call|>")


# Llama 3.1, 3.2, 3.3: the whole answer is a JSON object, or several objects, without tags.

LLAMA3 = JsonCalls(
    "llama3",
    marks=('{"name": function name, "parameters": dictionary of argument name and its value}',),
    ends=("<|eom_id|>",),
    trigger='{"name": "',
    before='{"name": "',
    middle='", "parameters": ',
    after="}",
    between="; ",
    at_start=True,
    bare=r'\{\s{0,8}("type":\s?"function",\s{0,8}"name"|"function"):\s?"{name}",\s{0,8}"parameters":',
)


# Cohere's Command models: a list of numbered objects between two control tokens.

COHERE = JsonCalls(
    "cohere",
    trigger="<|START_ACTION|>",
    begin="<|START_ACTION|>[\n    ",
    before='{"tool_call_id": "{index}", "tool_name": "',
    middle='", "parameters": ',
    after="}",
    between=",\n    ",
    end="\n]<|END_ACTION|>",
)


# Kimi K2: numbered calls between control tokens.

KIMI = JsonCalls(
    "kimi",
    marks=("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"),
    trigger="<|tool_calls_section_begin|>",
    begin="<|tool_calls_section_begin|>",
    before="<|tool_call_begin|>functions.",
    middle=":{index}<|tool_call_argument_begin|>",
    after="<|tool_call_end|>",
    end="<|tool_calls_section_end|>",
)


# Mistral: a control token, then a list of JSON objects with ids.
#
# In later models a call has a control token before its name and a control token before its arguments.

MISTRAL_LIST = JsonCalls(
    "mistral-list",
    marks=("[TOOL_CALLS] [{",),
    id_length=9,
    trigger="[TOOL_CALLS]",
    begin="[TOOL_CALLS][",
    before='{"name": "',
    middle='", "arguments": ',
    after=', "id": "{id}"}',
    between=", ",
    end="]",
)
MISTRAL = JsonCalls("mistral", id_length=9, trigger="[TOOL_CALLS]", before="[TOOL_CALLS]", middle="[ARGS]")
MISTRAL_IDS = JsonCalls(
    "mistral-ids", id_length=9, trigger="[TOOL_CALLS]", before="[TOOL_CALLS]", middle="[CALL_ID]{id}[ARGS]"
)


# DeepSeek: the arguments are in a Markdown code block (R1 and V3) or plain (V3.1).

DEEPSEEK = JsonCalls(
    "deepseek",
    marks=("<｜tool▁calls▁begin｜>", "```json"),
    trigger="<｜tool▁calls▁begin｜>",
    begin="<｜tool▁calls▁begin｜>",
    before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    middle="\n```json\n",
    after="\n```<｜tool▁call▁end｜>",
    between="\n",
    end="<｜tool▁calls▁end｜>",
)
DEEPSEEK_V31 = JsonCalls(
    "deepseek-v3.1",
    trigger="<｜tool▁calls▁begin｜>",
    begin="<｜tool▁calls▁begin｜>",
    before="<｜tool▁call▁begin｜>",
    middle="<｜tool▁sep｜>",
    after="<｜tool▁call▁end｜>",
    end="<｜tool▁calls▁end｜>",
)


# Formats of tool calls as functions and parameters in tags: Qwen3-Coder, GLM 4.5, MiniMax M2 and others.

QWEN3_CODER = TaggedCalls(
    "qwen3-coder",
    marks=("<tool_call>", "<function=", "<parameter="),
    trigger="<tool_call>",
    before="<tool_call>\n<function=",
    middle=">\n",
    before_key="<parameter=",
    after_key=">\n",
    after_value="\n</parameter>\n",
    after="</function>\n</tool_call>",
    between="\n",
)
SEED_OSS = TaggedCalls(
    "seed-oss",
    marks=("<seed:tool_call>",),
    trigger="<seed:tool_call>",
    before="<seed:tool_call>\n<function=",
    middle=">\n",
    before_key="<parameter=",
    after_key=">",
    after_value="</parameter>\n",
    after="</function>\n</seed:tool_call>",
    between="\n",
)


# GLM 4.5 to 4.7: a name, then keys and values in tags. One form has line breaks, the other has none.

GLM = TaggedCalls(
    "glm",
    trigger="<tool_call>",
    before="<tool_call>",
    middle="\n",
    before_key="<arg_key>",
    after_key="</arg_key>\n<arg_value>",
    after_value="</arg_value>\n",
    after="</tool_call>",
    between="\n",
)
GLM_DENSE = TaggedCalls(
    "glm-dense",
    trigger="<tool_call>",
    before="<tool_call>",
    before_key="<arg_key>",
    after_key="</arg_key><arg_value>",
    after_value="</arg_value>",
    after="</tool_call>",
)


# MiniMax M2: functions and parameters in tags. The names are attributes of the tags.

MINIMAX = TaggedCalls(
    "minimax",
    trigger="<minimax:tool_call>",
    begin="<minimax:tool_call>\n",
    before='<invoke name="',
    middle='">\n',
    before_key='<parameter name="',
    after_key='">',
    after_value="</parameter>\n",
    after="</invoke>\n",
    end="</minimax:tool_call>",
)
