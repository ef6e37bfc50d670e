"""The length of forced text: text that is the only continuation that a grammar allows.

llguidance finds a forced text in one call, byte by byte, and holds the GIL during this call. Worker threads therefore
match a grammar that may force a long text (``matching.py``). The estimates of the length are upper bounds.
"""

from __future__ import annotations

import math
import re

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
