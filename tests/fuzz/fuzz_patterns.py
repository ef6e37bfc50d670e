"""Random Oniguruma patterns and texts: the pieces must equal the pieces of Hugging Face ``tokenizers``, if installed.

Two in 200,000 patterns differ: in Oniguruma a repeated group with an assertion, for example ``^``, misses matches
(``docs/decisions/0017``).

Without ``tokenizers`` the two matching engines are compared: the backtracking engine and the automaton's table.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from support.patterns import searched, tabled

from pellucid.errors import InvalidRequest
from pellucid.tokenize.patterns.automaton import automaton
from pellucid.tokenize.patterns.matcher import Matcher
from pellucid.tokenize.patterns.oniguruma import PatternError
from pellucid.tokenize.stages.pretokenize import Split

try:
    import tokenizers
except ImportError:
    tokenizers = None

SECONDS, MEMORY, SMALL, LONG = 5.0, 8 << 30, 1_000, 100_000
TEXTS = 4  # for each pattern

ATOMS = [
    *("a", "b", "c", "A", "s", "ß", "k", "é", "漢", "1", "²", "_", " ", "-", "]", "&", "{", "a{", "}", "#"),
    *(r"\w", r"\W", r"\d", r"\s", r"\S", r"\h", r"\H", ".", r"\N", r"\O", r"\R", r"\p{L}", r"\P{L}", r"\p{^Lu}"),
    *(r"\p{Han}", r"\x61", r"\x{e9}", r"\x{61 62}", r"\u00e9", r"\t", r"\n", r"\e", r"\a", r"\cA", r"\012", r"\0"),
    *(r"\/", r"\-", r"\é", r"\U", r"\Q", r"\101", r"\xc3\xa9", "[:alpha:]", r"\pL", r"\p{Emoji}", r"\p{alnum}"),
]
EDGES = ["^", "$", r"\b", r"\B", r"\A", r"\z", r"\Z", r"\G"]
MEMBERS = [
    *("a", "b", "c", "z", "-", "a-c", "b-z", "A-Z", "0-9", r"\d", r"\w", r"\s", r"\h", r"\W", r"\p{Lu}", r"\P{L}"),
    *("[:alpha:]", "[:^digit:]", "[:punct:]", "&&", "&&", "[b-d]", "[^a]", "]", "^", r"\]", r"\-", "&", "é", "ß"),
    *(r"\x{61-63}", r"\x{61 62}", r"\x61", r"\b", r"\n", " ", "s", "k", "à-ÿ", "--", "[", "||", "~~"),
]
REPEATS = [
    *("*", "+", "?", "*?", "+?", "??", "*+", "++", "?+", "{2}", "{1,2}", "{,2}", "{2,}", "{1,2}?", "{2,1}", "{2}?"),
    *("{1,2}+", "{2}+", "{0}", "{,}", "{3,1}?", "{9999}", "{100001}"),
]
GROUPS = [
    *("(", "(?:", "(?i:", "(?m:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?x:", "(?W:", "(?i)", "(?<n>", "(?#"),
    *("(?-i:", "(?P:", "(?im-x:", "(?S:", "(?D:", "(?~", "(?(1)", "(?C", "(?'n'"),
]
LETTERS = "aabbccAABSsßſkK\u212a ss SS éÉ漢字1²_-]&\n\r\n\t \x1b\x01{}#\\^~|zZ0:\u0301xyQUù😀٣"


def case(random: Random, folder: Path) -> str | None:
    pattern = _either(random, 0)
    if random.random() < 0.1:  # damage the pattern
        at = random.randrange(len(pattern) + 1)
        pattern = pattern[:at] + random.choice(["", "\\", "(", "[", "]", ")", "{", "?"]) + pattern[at + 1 :]
    theirs = _theirs(pattern)
    try:
        matcher = Matcher(pattern)
    except PatternError as refused:
        return "a message of more than one line" if "\n" in str(refused) else None
    # Pellucid accepts more look-behinds, and braces with several code points after bytes in hexadecimal.
    refuses_more = "(?<" in pattern or r"\x{61" in pattern
    if tokenizers is not None and theirs is None and not refuses_more:
        return f"{pattern!r} is refused by tokenizers"
    for _ in range(TEXTS):
        text = "".join(random.choice(LETTERS) for _ in range(random.randint(1, 12)))
        if random.random() < 0.02:
            text *= 500
        if problem := _compared(pattern, matcher, theirs, text):
            return problem
    return None


def _theirs(pattern: str):  # type: ignore[no-untyped-def]
    """The two Splits of ``tokenizers``, or None if it refuses the pattern."""
    if tokenizers is None:
        return None
    from tokenizers.pre_tokenizers import Split as Theirs

    try:
        found = tokenizers.Regex(pattern)
    except Exception:
        return None
    return Theirs(found, "isolated"), Theirs(found, "removed", invert=True)


def _compared(pattern: str, matcher: Matcher, theirs, text: str) -> str | None:  # type: ignore[no-untyped-def]
    try:
        if theirs is None:
            if automaton(pattern) is None:
                matcher.spans(text)
                return None
            plain, walked = searched(pattern).spans(text), tabled(pattern).spans(text)
            return None if plain == walked else f"{pattern!r} {text!r}: {plain} by regex, {walked} by the table"
        ours = [Split(pattern)(text), Split(pattern, "Removed", True)(text)]
    except (InvalidRequest, TimeoutError):
        return None
    if len(text) > 100:  # slow searches are subject to our limits only
        return None
    try:
        wanted = [[piece for piece, _ in one.pre_tokenize_str(text)] for one in theirs]
    except BaseException as refused:  # a panic is not an Exception
        if isinstance(refused, KeyboardInterrupt):
            raise
        return None
    return None if ours == wanted else f"{pattern!r} {text!r}: {ours}, not {wanted}"


def _either(random: Random, depth: int) -> str:
    return "|".join(_chain(random, depth) for _ in range(random.choice([1, 1, 1, 2, 3])))


def _chain(random: Random, depth: int) -> str:
    out = ""
    for _ in range(random.choice([0, 1, 1, 2, 2, 3])):
        out += _atom(random, depth)
        if random.random() < 0.35:
            out += random.choice(REPEATS)
        if random.random() < 0.03:
            out += random.choice([r"\1", r"\2", r"\k<n>", r"\k<1>", r"\k<-1>", r"\g<1>", r"\K", r"\X"])
    return out


def _atom(random: Random, depth: int) -> str:
    kind = random.random()
    if kind < 0.5:
        return random.choice(ATOMS)
    if kind < 0.65:
        return _set(random, 0)
    if kind < 0.72:
        return random.choice(EDGES)
    if depth > 2:
        return random.choice("abc")
    group = random.choice(GROUPS)
    return group if group == "(?i)" else f"{group}{_either(random, depth + 1)})"


def _set(random: Random, depth: int) -> str:
    members = [
        random.choice(MEMBERS) if random.random() < 0.9 or depth > 1 else _set(random, depth + 1)
        for _ in range(random.randint(0, 4))
    ]
    return f"[{random.choice(['', '^'])}{''.join(members)}]"
