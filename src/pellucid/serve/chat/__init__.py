"""Chat with tools: messages → prompt and grammar; the model's text → reasoning, text and tool calls.

chat_run.py     a conversation as an engine request, for every API
messages.py     messages in the form that chat templates expect
tools.py        the tools of a request, and the choice among them
chat_style.py   a model's format of tool calls and reasoning, detected from its chat template
call_format.py  base classes of the formats in `formats/`
formats/        the formats of tool calls, one file each
lark.py         grammars in llguidance's Lark form: text, tokens, JSON schemas
reasoning.py    the texts before and after a model's reasoning
text_parser.py  an incremental text parser
answer_parser.py  a model's text as parts: reasoning, text, tool calls
"""
