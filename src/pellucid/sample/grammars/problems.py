"""Error messages for constraints: the problem, its place, and the remedy.

llguidance describes problems in its own terms. ``refusal`` translates the messages of llguidance 1.9 (``parser/src`` of
its repository). If a message is unknown, the error names only the place of the problem.
"""

from __future__ import annotations

import re

from pellucid.errors import InvalidRequest, one_line, shown

MEND, SIMPLER = "fix it, or remove it", "make it simpler"
MAX_PROBLEM_CHARACTERS = 300
MAX_QUOTED_CHARACTERS = 60  # limit of a quotation from the user's text

_Sentence = tuple[str, str, str]
_SCHEMA: list[_Sentence] = [
    (r"Unimplemented keys: \[(.*)\]", "{} is not implemented", "leave it out"),
    (r"Invalid type: (.*)", 'type "{}" is not a type of JSON', MEND),
    (r"Expected (?:f64|positive integer) for '(\w+)', got (.*)", "{} is {}, not a valid number for it", MEND),
    (r"(\w+) must be an? (.*)", "{} must be a JSON {}", MEND),
    (r"Unknown format: (.*)", 'format "{}" is not known', "leave it out, or give a pattern"),
    (r"Pointer '(.*)' does not exist", "it refers to #{}, which does not exist", MEND),
    (r"Anchor '(.*)' does not exist", "it refers to #{}, which does not exist", MEND),
    (r"Resource 'json-schema:///(.*)' is not present", '"{}" is not known', "name a draft of json-schema.org"),
    (r"Resource '(.*)' is not present", "it refers to {}, and no document is fetched", "put it under $defs"),
    (r"oneOf constraints are not supported", "some value may satisfy two options of oneOf", "use anyOf, or make the "
     "options exclude each other, for example by a required property with a different constant in each"),
    (r"(min\w+) \((.*)\) is greater than (max\w+|number of properties)(?: \((.*)\))?",
     "no text satisfies it: {} {} is above {} {}", MEND),
    (r"required property '(.*)' is unsatisfiable", 'no text satisfies its required property "{}"', MEND),
    (r"required > maxProperties", "it requires more properties than maxProperties allows", MEND),
    (r"range (.*) does not contain a multiple of (.*)", "no text satisfies it: no multiple of {1} is in {0}", MEND),
    (r"incompatible types", "no text satisfies it: its parts allow no common type", MEND),
    (r"anyOf is empty|No options in anyOf", "no text satisfies it: the list of options is empty", MEND),
    (r"Regex is empty|Constant .* doesn't match|Unsatisfiable schema|unsatisfiable", "no text satisfies it", MEND),
    (r"patternProperty regexes (/.*/) and (/.*/) are not disjoint", "one name may match both {} and {} of "
     "patternProperties", "use patterns that exclude each other"),
    (r"Value for 'multipleOf' has too many digits", "multipleOf has too many digits", "use fewer"),
    (r"Unable to determine if regex is empty", "its patterns together are too complex", SIMPLER),
    (r"schema too large|[Ii]ntersection stack level|Unable to determine", "it is too large", SIMPLER),
    (r"unknown field `(.*?)`, expected one of", 'x-guidance has no option "{}"', MEND),
    (r"Expecting object schema", "it allows no text", MEND),
]  # fmt: skip
_REGEX: list[_Sentence] = [
    (r"\(\?s:\.\{(?:\d{1,9},)?(\d{10,})", "a length of {} is too large", "use a smaller one"),
    (r"unclosed group", "a group is not closed", MEND),
    (r"unopened group", "a group is closed that was not opened", MEND),
    (r"unclosed character class", "a character class is not closed", MEND),
    (r"repetition operator missing", "nothing is before the repetition", MEND),
    (r"repetition count range", "the repetition ends before it starts", MEND),
    (r"repetition (?:count|quantifier)", "the repetition has no valid number", MEND),
    (r"character class range", "the range of characters ends before it starts", MEND),
    (
        r"look-?around",
        "look-ahead, look-behind and anchors are not supported",
        "leave them out: the whole text matches",
    ),
    (r"backreferences", "backreferences are not supported", MEND),
    (r"Unicode property|Unicode class", "the Unicode property is not known", MEND),
    (r"POSIX|ASCII character class", "the class of characters is not known", MEND),
    (r"capture group name", "the name of a group is wrong or comes twice", MEND),
    (r"flag", "the flag is not known", MEND),
    (r"escape", "the escape is not known", MEND),
    (r"decimal literal", "the number is too large, or missing", MEND),
    (r"hexadecimal literal", "the number is not the code of a character", MEND),
    (r"invalid UTF-8", "it matches bytes that are not text", MEND),
    (r"nested|nest limit", "it is nested too deep", SIMPLER),
    (r"regex parse error", "the regular expression is not valid", MEND),
    (r"invalid regex", "the regular expression uses a feature that is not supported", MEND),
]
_GRAMMAR: list[_Sentence] = [
    (r"[Nn]o '?(start|root)'? rule found", 'there is no rule "{}"', "add it"),
    (r"(?:rule|Rule|unknown name:?) (['\"].*?['\"])(?: not found)?$", "{} is not defined", "define it"),
    (r"(?:duplicate (?:rule|token).*?: |Rule )(['\"].*?['\"])", "{} is defined twice", "rename one of the two"),
    (r"circular reference in token (\".*?\")", "the terminal {} contains itself", "make it a rule: use small letters"),
    (r"Unknown common regex: ([\w.]+)", "{} cannot be imported", "define it"),
    (r"unknown grammar (\S+)|unknown special token: (\S+)", "{} is not known", MEND),
    (r"Expected (?:token )?(.*?),? found (.*?) \(at", "there is {1} where {0} is expected", MEND),
    (r"Unexpected end of input|EOF while parsing|string index out of range", "it ends too soon", MEND),
    (r"Expected (.*?) (?:at|\(at)", "{} is expected", MEND),
    (r"Invalid escape sequence (\\.)|Incomplete escape", "the escape {} is not known", MEND),
    (r"Exceeds the limit \(\d+(?: digits)?\)", "a number has too many digits", SIMPLER),
    (r"range (?:end|start) must be", "the repetition ends before it starts", MEND),
    (r"[Ii]nvalid (?:token )?range", "the range is wrong", MEND),
    (r"lexer error$", "the text from this character on is not valid syntax", MEND),
    (r"(& is only|%json literals|special tokens|grammar references|nested %lark).*terminals|& is only supported",
     "this is allowed only in a rule or only in a terminal", "name rules in small letters, terminals in capitals"),
    (r"not supported|no longer supported|only supported", "the syntax there is not supported", "leave it out"),
    (r"failed to parse %(\w+)|unknown field `(.*?)`", "%{} has an invalid value", MEND),
]  # fmt: skip
_SIZE: list[_Sentence] = [
    (r"^NoExtension|no extension", "it allows no text", MEND),
    (r"too many expressions constructed|fuel exhausted|lexer precomputation",
     "its expressions are too complex, or force a text that is too long", "use fewer and smaller repetitions"),
    (r"too many states", "its expressions are too complex", "use fewer and smaller repetitions"),
    (r"Too many items|items; max is|ParserTooComplex", "too many of its rules fit the text",
     "make it less ambiguous, or repeat terminals, not rules"),
    (r"too big|too large", "it is too large", SIMPLER),
]  # fmt: skip
_SENTENCES = {"json_schema": [*_SCHEMA, *_REGEX], "grammar": [*_REGEX, *_GRAMMAR, *_SCHEMA]}
_PLACE, _LINE = re.compile(r"(?:at )?(\d+)\((\d+)\): "), re.compile(r"at line (\d+)")
_CARET = re.compile(r"regex parse error:\n    (?P<regex>[^\n]*)\n    (?P<indent> *)\^")


def refused(kind: str, problem: str, remedy: str = MEND) -> InvalidRequest:
    """The error for a constraint that cannot be enforced. ``problem`` is a part of the message."""
    return InvalidRequest(f"{kind} cannot be enforced: {one_line(problem)[:MAX_PROBLEM_CHARACTERS]}; {remedy}")


def refusal(kind: str, path: str, problem: str, *, translated: bool = False) -> InvalidRequest:
    """The error for a problem of a constraint that llguidance reports.

    ``path`` is the place of the problem in a schema. With ``translated``, llguidance has read a translation of the
    user's text, so the error does not name line numbers.
    """
    problem = re.split(r"\n?<(?:state|non-verbose)", problem, maxsplit=1)[0].strip()
    place = f"{path}: " if path else ""
    body = problem
    if location := _PLACE.match(problem):
        body = problem[location.end() :]
        if kind == "grammar" and not translated:
            place = f"line {location[1]}, column {location[2]}: "
    elif kind == "grammar" and (location := _LINE.search(problem)):
        place = f"line {location[1]}: "
    if (caret := _CARET.search(problem)) and "(?s:" not in caret["regex"]:
        at = f"character {len(caret['indent']) + 1}: "
        place += at if kind == "regex" else f"/{shown(caret['regex'])[:MAX_QUOTED_CHARACTERS]}/, {at}"
    body = re.split(r"\n +\d+ \| ", body, maxsplit=1)[0]  # the rest is a quotation of the text
    for pattern, sentence, remedy in [*_SIZE, *_SENTENCES.get(kind, _REGEX)]:
        if match := re.search(pattern, body):
            parts = [shown(part)[:MAX_QUOTED_CHARACTERS] for part in match.groups() if part is not None]
            parts += [""] * sentence.count("{")
            return refused(kind, place + sentence.format(*parts), remedy)
    return refused(kind, f"{place}it is not valid, or uses a feature that is not implemented")
