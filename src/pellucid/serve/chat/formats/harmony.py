"""gpt-oss: messages in channels. Reasoning is in "analysis", an answer in "final", a call in "commentary".

Source: https://github.com/openai/harmony (docs/format.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import regex  # type: ignore[import-untyped]

from pellucid.serve.chat.call_format import ANYTHING, Answer, CallFormat, LarkBuilder, either
from pellucid.serve.chat.messages import ToolChoice
from pellucid.serve.chat.text_parser import Parse

RECIPIENT = regex.compile(r"to=functions\.([\w.-]+)")
CHANNEL = regex.compile(r"<\|channel\|>(\w+)")
NEXT = "<|end|><|start|>assistant"


@dataclass(frozen=True)
class Harmony(CallFormat):
    """An answer is a sequence of messages. The last message is the text for the user or a tool call."""

    always: ClassVar[bool] = True

    @property
    def literals(self) -> Sequence[str]:
        return ["<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|start|>"]

    def written_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        return f" to=functions.{name}<|channel|>commentary json<|message|>{json.dumps(arguments)}"

    def grammar(self, build: LarkBuilder, choice: ToolChoice, shape: str | None) -> str:
        def message(channel: str, content: str) -> str:
            return f"{build.text(f'<|channel|>{channel}<|message|>')} {content}"

        before = [message(channel, ANYTHING) for channel in ("analysis", "commentary")]
        thought = build.rule("thought", f"{either(*before)} {build.text(NEXT)}")
        ends = [] if choice.required else [message("final", shape or ANYTHING)]
        for tool in choice.tools:
            arguments = build.json(f"tool {tool.name}: parameters", tool.schema)
            to = f" to=functions.{tool.name}"
            ends.append(f"{build.text(f'{to}<|channel|>commentary json<|message|>')} {arguments}")
            ends.append(f"{build.text(f'<|channel|>commentary{to} <|constrain|>json<|message|>')} {arguments}")
        return f"{thought}* {either(*ends)}"

    def read(self, answer: Answer) -> Parse[None]:
        while True:
            header = list[str]()
            if not (yield from answer.until("<|message|>", header.append)):
                # A text that begins like a header is a header in which the answer was cut off.
                if not "".join(header).startswith(("<|", " to=")):
                    answer.text("".join(header))
                return
            head = "".join(header)
            channel, recipient = CHANNEL.search(head), RECIPIENT.search(head)
            if recipient and recipient[1] in answer.tools:
                answer.call(recipient[1])
                yield from answer.json_object(answer.arguments)
                return
            out = answer.reasoning if channel and channel[1] == "analysis" else answer.text
            if not (yield from answer.until("<|end|>", out)):
                return


HARMONY = Harmony("harmony", marks=("<|channel|>analysis",), ends=("<|call|>", "<|return|>"))
