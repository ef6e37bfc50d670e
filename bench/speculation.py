"""Speedup by speculative decoding, on code edits and on plain prompts for code.

    python bench/speculation.py [--model qwen2.5-coder-1.5b] [--edits 20] [--plain 20] [--tokens 300] [--rounds 3]
                                [--draft qwen2.5-coder-0.5b [--both]]

The script measures prompt lookup. With ``--draft`` it measures a draft model instead, and with ``--both`` the
combination of both.

An edit asks for a function of Python's standard library with a change, so the answer repeats most of the prompt. Runs
with and without speculation alternate. The figure of a prompt is the ratio of the median speeds. Every answer is
compared with the answer without speculation.
"""

from __future__ import annotations

import argparse
import fnmatch
import heapq
import inspect
import json
import posixpath
import shlex
import statistics
import string
import textwrap
from collections.abc import Callable
from typing import Any

import pellucid

SOURCES: list[Callable[..., Any]] = [
    *(textwrap.wrap, textwrap.fill, textwrap.shorten, textwrap.dedent, textwrap.indent, fnmatch.filter),
    *(fnmatch.translate, heapq.merge, heapq.nsmallest, heapq.nlargest, shlex.split, shlex.join, json.dump),
    *(json.load, posixpath.join, posixpath.commonpath, posixpath.normpath, posixpath.relpath, string.capwords),
    posixpath.expanduser,
]
CHANGES = (
    "rename its first parameter to `value`",
    "add a type annotation to its first parameter",
    "add the line `# reviewed` below its first line",
    "rename the function to `renamed`",
)
PLAIN = (
    *("a Python function that merges two sorted lists", "a C function that reverses a string in place"),
    *("a SQL query for the top 3 customers by revenue", "a Rust struct for a point with a distance method"),
    *("a bash script that counts the lines of all .py files", "a JavaScript debounce function"),
    *("a Python class for a least recently used cache", "a Go function that reads a file line by line"),
    *("a Python decorator that retries three times", "a regular expression for dates, with an explanation"),
    *("a Haskell quicksort", "a Java method that checks for a palindrome", "a Dockerfile for a Flask application"),
    *("a Python generator of prime numbers", "a TypeScript type guard for a user object"),
    *("a C++ template for a stack", "a Makefile for a small C project", "a Python context manager that times code"),
    *("a CSS grid with three columns", "a unit test for a function that adds two numbers"),
)


def prompts(edits: int, plain: int) -> dict[str, list[str]]:
    asked = [
        f"Rewrite this Python function: {CHANGES[number % len(CHANGES)]}. Answer with the whole function only.\n\n"
        f"```python\n{inspect.getsource(source)[:2000]}\n```"
        for number, source in enumerate(SOURCES[:edits])
    ]
    return {"edits": asked, "plain": [f"Write {what}." for what in PLAIN[:plain]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--plain", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft")
    parser.add_argument("--both", action="store_true")
    asked = parser.parse_args()
    llm, found = pellucid.load(asked.model, context=4096, draft=asked.draft), dict[str, list[float]]()
    lookup = asked.draft is None or asked.both
    for kind, texts in prompts(asked.edits, asked.plain).items():
        for number, text in enumerate(texts):
            messages = [{"role": "user", "content": text}]
            speeds: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(asked.rounds):
                made = {}
                for on in speeds:
                    made[on] = llm.chat(
                        messages, temperature=0, max_new_tokens=asked.tokens, prompt_lookup=on and lookup, draft=on
                    )
                    speeds[on].append(made[on].tokens_per_second)
                if made[True].ids != made[False].ids:
                    raise SystemExit(f"{kind} {number}: speculation changed the text")
            ratio = statistics.median(speeds[True]) / statistics.median(speeds[False])
            found.setdefault(kind, []).append(ratio)
            usage = made[True].usage
            print(
                f"{kind} {number}: {len(made[True].ids)} tokens, {ratio:.2f} times as fast, "
                f"{usage.accepted_tokens} of {usage.proposed_tokens} proposed tokens accepted",
                flush=True,
            )
    print(
        json.dumps(
            {
                kind: {
                    "median": round(statistics.median(ratios), 3),
                    "least": round(min(ratios), 3),
                    "ratios": [round(ratio, 3) for ratio in ratios],
                }
                for kind, ratios in found.items()
            }
        )
    )


if __name__ == "__main__":
    main()
