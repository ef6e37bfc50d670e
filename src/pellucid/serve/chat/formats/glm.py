"""GLM 4.5 to 4.7: a name, then keys and values in tags. One form has line breaks, the other has none."""

from pellucid.serve.chat.call_format import TaggedCalls

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
