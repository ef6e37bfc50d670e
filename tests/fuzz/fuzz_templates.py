"""Random chat templates and conversations: each renders a text or a one-line error, within time and memory limits.

A case is a template (``template_grammar.py``: plain, hostile, damaged or garbage) and a conversation. Findings are a
result other than a text or a ``PellucidError``, an error longer than one line or 500 characters, a case that exceeds
its time limit, and growth of this process. If transformers is installed, it must render the same text from a plain
template.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from support import templates
from template_grammar import TEXTS, damaged, garbage, hostile, plain

from pellucid.errors import PellucidError
from pellucid.tokenize.chat import template
from pellucid.tokenize.chat.template import RenderLimits

SECONDS, MEMORY = 3.0, 3 << 30
SMALL, LONG = 400, 100_000

HOSTILE = RenderLimits(seconds=0.2, megabytes=128, characters=200_000)
LATE_SECONDS = 2.0  # allowed beyond the limit, as the machine may be busy
MAX_ERROR_CHARACTERS = 500
GROWTH = 300 << 20  # bytes that this process may grow after its first case
DESCRIPTORS = 60

ADDRESS = re.compile(r"0x[0-9a-f]+")
"""An address in Python's repr of an object; it differs between processes."""


def case(random: Random, folder: Path) -> str | None:
    kind = random.random()
    if kind < 0.4:
        return compared(plain(random), talk(random))
    if kind < 0.65:
        source = hostile(random)
    elif kind < 0.92:
        source = damaged(random, random.choice(templates.TEMPLATES))
    else:
        source = garbage(random)
    messages = wild_talk(random) if random.random() < 0.3 else talk(random)
    return checked(source, messages, HOSTILE)[1]


SURROGATE = re.compile("[\ud800-\udfff]")


def compared(source: str, messages: Any) -> str | None:
    """Compare the outcome of a plain template with transformers. Returns the problem or None."""
    text, problem = checked(source, messages, RenderLimits())
    theirs_of = theirs()
    if problem is not None or theirs_of is None or SURROGATE.search(json.dumps(messages, ensure_ascii=False)):
        return problem  # Pellucid refuses surrogates
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about the code that Jinja generates
            expected = theirs_of(source, messages, [templates.TOOL])
    except Exception as error:
        return None if text is None else f"transformers refuses it ({one_line(repr(error))}): {one_line(source)}"
    if text is None:
        return f"transformers does not refuse it: {one_line(source)}"
    if ADDRESS.sub("", text) != ADDRESS.sub("", expected) and is_repeatable(source, messages, text):
        return f"{one_line(text)}, and not {one_line(expected)}: {one_line(source)}"
    return None


def is_repeatable(source: str, messages: Any, text: str) -> bool:
    """True if other processes render the same text. Texts differ if they depend on the digits of an address."""
    for _ in range(4):
        template.end_workers()
        if templates.chat(source, messages, [templates.TOOL]) != text:
            return False
    return True


def checked(source: str, messages: Any, limits: RenderLimits) -> tuple[str | None, str | None]:
    """Render a template. Returns (text or None if refused, problem or None)."""
    base = memory_base()
    began = time.monotonic()
    text, problem = None, None
    try:
        text = templates.chat(source, messages, [templates.TOOL], limits)
        if not isinstance(text, str):
            problem = f"{type(text).__name__} comes out"
    except PellucidError as error:
        message = str(error)
        if not message.isprintable() or len(message) > MAX_ERROR_CHARACTERS:
            problem = f"an error of {len(message)} characters: {message[:200]!r}"
    if (spent := time.monotonic() - began) > limits.seconds + LATE_SECONDS:
        problem = f"{spent:.1f} s; the limit is {limits.seconds:g}"
    if (grown := memory() - base) > GROWTH:
        problem = f"the process has {grown >> 20} MB more than before"
    if (count := len(os.listdir("/proc/self/fd"))) > DESCRIPTORS:
        problem = f"the process has {count} open files"
    return text, problem


def talk(random: Random) -> list[Any]:
    """A plausible conversation."""
    messages = copy.deepcopy(random.choice(templates.CONVERSATIONS))
    for message in messages:
        if random.random() < 0.3:
            key = random.choice(("content", "content", "role", "reasoning", "thinking", "tool_calls", "x"))
            message[key] = value(random, 3)
    return messages


def value(random: Random, depth: int) -> Any:
    """A random JSON value."""
    kind = random.randrange(10 if depth else 7)
    if kind < 7:
        texts = (*TEXTS, "<|im_end|>", "\ud800", "\udc00\ud800", "\x00\x1b", "\u2028")
        return random.choice((None, True, 0, -7, 1.5, float("inf"), 10**20, *texts))
    inner = [value(random, depth - 1) for _ in range(random.randrange(4))]
    return inner if kind == 7 else {random.choice(("type", "text", "a", "items", "")): item for item in inner}


def wild_talk(random: Random) -> Any:
    """A conversation that may contain anything."""
    messages: Any = talk(random)
    kind = random.randrange(12)
    if kind == 0:
        return random.choice(([], None, "", "text", 7, {}, b"x", [[]], ["a"], [None], object(), iter([]), [object]))
    where = random.choice(messages)
    key = random.choice(("content", "content", "role", "tool_calls", "y")) if random.random() < 0.9 else (7, None)
    wild = (
        lambda: "x" * random.choice((10**5, 10**6)),
        lambda: nested(random.choice((50, 99, 200, 3000))),
        lambda: {random.choice((1, None, (1,), 1.5)): 1},
        lambda: random.choice((b"x", {1}, object(), print, type, 1j, range(3), (1, "b"), 1 << 9000, 10**4000)),
        lambda: [{"type": "text", "text": "é" * 1000}] * random.choice((1, 1000)),
        lambda: "\ud83d\ude00" * random.choice((1, 1000)),
        lambda: {"\n" * 50: {"a" * 1000: set()}},
    )
    where[key] = random.choice(wild)()
    return messages


def nested(depth: int) -> Any:
    made: Any = 1
    for at in range(depth):
        made = [made] if at % 2 else {"a": made}
    return made


def memory() -> int:
    """Resident memory of this process in bytes."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@cache
def memory_base() -> int:
    theirs()
    return memory()


@cache
def theirs() -> Any:
    return templates.transformers_chat()


def one_line(text: str) -> str:
    return repr(text[:300])


if sys.platform != "linux":
    SMALL = LONG = 0  # the fuzzer reads /proc
