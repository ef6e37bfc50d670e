"""DeepSeek: the arguments are in a Markdown code block (R1 and V3) or plain (V3.1)."""

from pellucid.serve.chat.call_format import JsonCalls

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
