"""Conversations with tools: from messages to a prompt and a grammar, and from the model's text to its parts.

request.py      a conversation as a request to the engine, for every API
messages.py     messages in the form that templates expect
tools.py        what a request says about tools
template.py     how a model writes calls and reasoning, by its chat template
call_format.py  what a file of `formats/` declares
formats/        the formats of calls, one file each
lark.py         grammars: texts, tokens and schemas in llguidance's form
reasoning.py    the marks around a model's reasoning
text_parser.py  a parser for text that comes in pieces
answer.py       a text as parts: reasoning, text, calls
"""
