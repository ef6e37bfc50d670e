"""A function and its parameters in tags: Qwen3-Coder, Qwen3.5, Nemotron 3, Seed-OSS."""

from pellucid.serve.chat.call_format import TaggedCalls

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
