"""Constraints on a text: JSON by a schema, a match of a regex, one of several choices, or a sentence of a grammar.

The user's value is checked against limits and converted to a grammar in llguidance's form. llguidance (Microsoft, MIT
license) then matches texts against the grammar (``matching.py``). It has an Earley parser, and a lexer that uses
derivatives of regular expressions.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pellucid.errors import InvalidRequest, brief
from pellucid.runtime.memory import release_heap
from pellucid.sample.grammars import schema
from pellucid.sample.grammars.problems import refusal, refused
from pellucid.sample.grammars.rewrites import innermost
from pellucid.sample.grammars.schema import check_length
from pellucid.util import checks

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from llguidance import LLExecutor, LLMatcher

# The length of forced text: text that is the only continuation that a grammar allows. llguidance finds a forced text in
# one call, byte by byte, and holds the GIL during this call. Worker threads therefore match a grammar that may force a
# long text (``matching.py``). The estimates of the length are upper bounds.

LONG_RUN = 1 << 14  # characters
_ATOM = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{\s*(?P<count>\d+)[^}]*\}|.", re.DOTALL)
_COUNT = re.compile(r'(?:\{|"min(?:Length|Items|Properties)"\s*:)\s*(\d+)')
_TERMINAL = re.compile(r"^\s*([_A-Z][_A-Z0-9]*)\s*(?:\[[^\n]*\])?\s*:(.*(?:\n\s*\|.*)*)", re.MULTILINE)
# Maximum depth of terminals in terminals that is resolved.
_ROUNDS = 16
_NAME = re.compile(r"\b[_A-Z][_A-Z0-9]*\b")


def has_long_runs(kind: str, text: str) -> bool:
    """True if an option's value may force a long text."""
    length = _regex(text) if kind == "regex" else _grammar(text)
    return kind != "choices" and length > LONG_RUN


def _regex(text: str) -> int:
    """The length of a regular expression if its repetitions are written out."""
    groups, last = [0], 0
    for atom in _ATOM.finditer(text):
        if atom[0] == "(":
            groups.append(0)
        elif atom[0] == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif atom["count"]:
            more = last * (min(int(atom["count"][:9]), LONG_RUN + 1) - 1)
            groups[-1], last = groups[-1] + more, last + more
        else:
            groups[-1], last = groups[-1] + 1, 1
    return sum(groups)


def _grammar(text: str) -> int:
    """The length of a grammar or schema if terminals are written out, multiplied by the counts of all repetitions."""
    bodies = dict(_TERMINAL.findall(text))
    inner = {name: [part for part in _NAME.findall(body) if part in bodies] for name, body in bodies.items()}
    sizes = {name: len(body) for name, body in bodies.items()}
    for _ in range(_ROUNDS):
        wider = {name: len(bodies[name]) + sum(sizes[part] for part in inner[name]) for name in bodies}
        if wider == sizes:
            break
        sizes = wider
    counts = [max(int(count[:9]), 1) for count in _COUNT.findall(text)]
    return (len(text) + sum(sizes.values())) * math.prod(counts[:64])


MAX_CHARACTERS = {"regex": 1 << 16, "grammar": 1 << 18}
# Maximum nesting depth of brackets, and maximum number of lines that define a rule.
MAX_DEPTH, MAX_RULES = 64, 1000
MAX_CHOICES, MAX_CHOICE_CHARACTERS = 10_000, 4096
# Maximum number of characters of all choices together.
MAX_CHOICES_CHARACTERS = 1 << 20
# White space in JSON is limited as in llama.cpp, because small models otherwise generate white space forever. Escapes
# are allowed only for characters that need an escape, because llguidance treats a name with other escapes as a
# different name.
JSON = {"whitespace_pattern": r" |\n{1,2}[ \t]{0,20}", "json_allowed_escapes": '"\\nrtbf'}
LIMITS = {
    "max_grammar_size": 200_000,  # symbols
    "initial_lexer_fuel": 250_000,  # nodes of regular expressions, plus twice the bytes that are forced at the start
    "max_lexer_states": 100_000,  # 400 bytes each
    "verbose_errors": False,
}


@dataclass(frozen=True)
class Grammar:
    """A grammar that llguidance accepts. ``kind`` is the option's name. ``source`` is in llguidance's form.

    ``long_runs`` is True if the grammar may force long texts.
    """

    kind: str
    source: str
    long_runs: bool = False


def compiled(kind: str, value: Any) -> Grammar:
    """The checked grammar of an option's value.

    Raises InvalidRequest: the value is invalid, too deep, too large, or uses a feature that is not implemented.
    """
    return _checked(kind, _READERS[kind](kind, value))


@functools.lru_cache(maxsize=64)
def _checked(kind: str, text: str) -> Grammar:
    try:
        source = _source(kind, text)
        problem = _problem(source)
    except BaseException as error:  # the GBNF parser has its own error types, and the Rust code may panic
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        problem = str(error) or type(error).__name__
    if problem and kind == "json_schema":
        raise refusal(kind, *innermost(json.loads(text), problem, _problem_of_schema))
    if problem:
        raise refusal(kind, "", problem, translated=_is_gbnf(text))
    return Grammar(kind, source, has_long_runs(kind, text))


def _problem(source: str) -> str:
    """The reason why llguidance refuses a grammar; "" if the grammar is valid."""
    return pool("large").submit(_validated, source).result()


def _problem_of_schema(schema: Any) -> str:
    return _problem(_source("json_schema", json.dumps(schema)))


def _validated(source: str) -> str:
    from llguidance import LLMatcher, LLParserLimits

    start = time.thread_time()
    problem = LLMatcher.validate_grammar(source, limits=LLParserLimits(**LIMITS))  # type: ignore[arg-type]
    if time.thread_time() - start > LONG_COMPILATION:
        trim()
    return problem


def _source(kind: str, text: str) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, defaults=JSON)  # type: ignore[arg-type]
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "choices":  # one terminal, because a rule with thousands of alternatives is too large
        words = " | ".join(map(json.dumps, json.loads(text)))
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {words}")
    return LLMatcher.grammar_from_lark(gbnf_to_lark(_unescape(text)) if _is_gbnf(text) else text)


def _is_gbnf(grammar: str) -> bool:
    return "::=" in grammar


def _unescape(gbnf: str) -> str:
    """GBNF with numeric escapes replaced by their characters. Escapes below U+00A0 remain, for GBNF's syntax."""

    def character(match: re.Match[str]) -> str:
        code = int(match[0][2:], 16)
        plain = 0xA0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF
        return chr(code) if plain else match[0]

    return re.sub(r"\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}|\\x[0-9A-Fa-f]{2}", character, gbnf)


def _read_text(kind: str, given: Any) -> str:
    value = checks.text(kind, given)
    check_length(kind, value, MAX_CHARACTERS[kind])
    depth = deepest = 0
    for character in value:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(depth, deepest)
    if deepest > MAX_DEPTH:
        raise InvalidRequest(f"{kind} has brackets nested {deepest:,} deep; the limit is {MAX_DEPTH}: make it simpler")
    rules = len(re.findall(r"^\s*[?!]?[\w.-]+\s*(?:\[[^\n]*\])?\s*(?:::=|:)", value, re.MULTILINE))
    if kind == "grammar" and rules > MAX_RULES:
        raise InvalidRequest(f"{kind} has {rules:,} rules; the limit is {MAX_RULES:,}: make it simpler")
    if kind == "regex" and (len(value) - len(value.rstrip("\\"))) % 2:
        raise refused(kind, "it ends in a backslash, which escapes nothing")
    return value


def _read_choices(kind: str, value: Any) -> str:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise InvalidRequest(f"{kind}={brief(value)}: must be a list of at least one text")
    if len(value) > MAX_CHOICES:
        raise InvalidRequest(f"{kind} has {len(value):,} texts; the limit is {MAX_CHOICES:,}: give fewer")
    for choice in value:
        checks.text(kind, choice, MAX_CHOICE_CHARACTERS)
    if (total := sum(map(len, value))) > MAX_CHOICES_CHARACTERS:
        raise InvalidRequest(
            f"{kind} has {total:,} characters; the limit is {MAX_CHOICES_CHARACTERS:,}: give fewer or shorter texts"
        )
    return json.dumps(list(value))


_READERS = {"json_schema": schema.read, "regex": _read_text, "choices": _read_choices, "grammar": _read_text}


# Threads that compile grammars and compute masks, so that no step of the model waits for one request's grammar.
# llguidance releases the GIL while it compiles a grammar and while it computes a mask. Its method that consumes a token
# holds the GIL; ``consume`` in this file releases the GIL.

POOLS = {"mask": (4, 0), "large": (2, 5), "slow": (2, 10)}
"""The thread pools: the maximum number of threads of each pool, and their niceness. The niceness leaves the CPUs to the
model. macOS and Windows have classes of priorities instead of niceness.

The pool "large" compiles grammars. It also computes the first mask if this mask may take long. The pool "slow" computes
the masks of a grammar with slow masks, so that quick masks in "mask" do not wait behind slow masks.
"""
LONG_COMPILATION = 0.02
"""Seconds. After a longer compilation, ``trim`` is called."""


@functools.cache
def pool(name: str) -> ThreadPoolExecutor:
    """The pool of this name. Threads start on demand."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and only grammars need it

    max_threads, nice = POOLS[name]
    return ThreadPoolExecutor(max_threads, f"pellucid-grammar-{name}", _start_thread, (nice,))


if hasattr(os, "register_at_fork"):  # a forked child would inherit the pools without their threads
    os.register_at_fork(after_in_child=pool.cache_clear)


def _start_thread(nice: int) -> None:
    """Set the niceness of a new thread, and its CPU affinity to the affinity of the process instead of the engine's."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
            os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))
        elif sys.platform == "darwin" and nice:
            from pellucid.util import macos

            macos.lower_priority()
        elif sys.platform == "win32" and nice:
            from pellucid.util import windows

            windows.lower_priority()


class _Local(threading.local):
    @functools.cached_property
    def executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor(1)


_local = _Local()


def consume(matcher: LLMatcher, token: int, spare: LLMatcher) -> None:
    """Advance a matcher by a token without the GIL. llguidance releases the GIL only for calls with several matchers.

    ``spare`` is the second matcher that such a call needs. It is in an error state, so no token changes it.
    """
    _local.executor.consume_token_par([(matcher, token), (spare, 0)])


def trim(job: Future[None] | None = None) -> None:
    """Return to the system the free memory that the allocator keeps. With a ``job``, wait first until the job ends."""
    if job is not None and not job.cancelled():
        job.exception()
    release_heap()
