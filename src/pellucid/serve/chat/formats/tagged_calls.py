"""Formats of tool calls as functions and parameters in tags: Qwen3-Coder, GLM 4.5, MiniMax M2 and others."""

from __future__ import annotations

from pellucid.serve.chat.call_format import TaggedCalls

# A function and its parameters in tags: Qwen3-Coder, Qwen3.5, Nemotron 3, Seed-OSS.

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
