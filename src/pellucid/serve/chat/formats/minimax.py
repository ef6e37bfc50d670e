"""MiniMax M2: functions and parameters in tags. The names are attributes of the tags."""

from pellucid.serve.chat.call_format import TaggedCalls

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
