"""Generates random chat templates for ``fuzz_templates.py``.

``plain`` templates finish soon and produce little text in any engine. ``hostile`` templates add large numbers, and
constructs that take much time, memory or depth.
"""

from __future__ import annotations

from random import Random

NAMES = (
    *("messages", "messages[0]", "messages[-1].content", "tools", "bos_token", "m", "m.role", "m['content']", "ns.a"),
    *("x", "y", "missing", "add_generation_prompt", "m.tool_calls", "documents"),
)
LOOP_NAMES = ("loop.index", "loop.last", "loop.length", "loop.cycle('a', 'b')", "loop.previtem")
TEXTS = (
    *("", "a", " b ", "user", "é<&>", "日本\U0001f600", "x,y;z", "\\n", "{}", "%s", "A b C", "12", "-1.5", "</think>"),
)
NUMBERS = ("0", "1", "2", "3", "-1", "7", "1.5", "1e3", "true", "none")
GREAT = ("10**9", "10**10", "99999999999", "2**31", "-10**9", "10**300", "1e308", "10**6", "65536")


def _words(text: str) -> list[str]:
    return text.split()


FILTERS = _words("""
    length list string int float first last join reverse sort unique abs tojson default('d') safe round round(1)
    batch(2) slice(2) sum max min select reject select('string') map('upper') map(attribute='role') selectattr('role') d
    rejectattr('content') groupby('role') dictsort xmlattr pprint filesizeformat tojson(indent=2) tojson(sort_keys=true)
    tojson(ensure_ascii=true) attr('upper') join('-') items map('length') map('string') sort(reverse=true)
    tojson(separators=(',',':')) default('x',true)
""")
TEXT_FILTERS = _words("""
    upper lower trim title capitalize length list string int float first last join reverse sort unique tojson escape e
    forceescape safe striptags urlize wordcount wordwrap(5) center(9) indent replace('a','b') truncate(5) urlencode
    format(1) indent(2,true) map('replace','a','b') batch(2) trim('a')
""")
TESTS = _words("""
    defined undefined none string number mapping sequence iterable true false boolean integer float odd even callable
    lower upper divisibleby(2) sameas(none) in(['a']) eq(1) escaped filter test
""")
METHODS = _words("""
    strip() upper() lower() split() split('a') split('</think>')[-1] startswith('a') endswith('a') replace('a','b')
    items() keys() values() get('role') get('x','y') title() lstrip('\\n') rstrip() find('a') count('a') copy()
    format(1) join(['a']) format(a=1) encode() isdigit() splitlines() index('a') format_map({}) zfill(5) ljust(4)
    append(1) pop() update({})
""")
ARITHMETIC = _words("+ - * / // % ** < > <= >= == !=")
GREAT_FILTERS = _words("""
    indent({n}) center({n}) wordwrap({n}) tojson(indent={n}) batch({n}) slice({n}) truncate({n}) round({n}) format({n})
    sum(start=[]) replace('a','b'*{n}) join('a'*{n}) list sort groupby(0) select map('list') random pprint urlize
    xmlattr
""")
GREAT_METHODS = _words("""
    ljust({n}) zfill({n}) center({n}) rjust({n}) expandtabs({n}) format({n},w={n}) translate({{97:'b'*{n}}})
    splitlines() replace('','a'*{n}) join(['a']*{n}) encode('utf-8') __class__ __len__() format_map(ns)
    __init__.__globals__
""")
FORMATS = (
    "'%*d' % ({n},1)",
    "'{{:{{w}}}}'.format(1,w={n})",
    "'%{n}d' % 1",
    "'{{:>{n}}}'.format(1)",
    "'{{0:{{1}}}}'.format(1,{n})",
)
BOMBS = (
    "{{% set n = namespace(a='ab') %}}{{% for i in range({k}) %}}{{% set n.a = n.a ~ n.a %}}{{% endfor %}}"
    "{{{{ n.a|length }}}}",
    "{{% set n = namespace(a=[1],b=[1]) %}}{{% for i in range({k}) %}}{{% set n.a=[n.a,n.a] %}}"
    "{{% set n.b=[n.b,n.b] %}}{{% endfor %}}{{{{ n.a == n.b }}}}",
    "{{% set n = namespace(a=[]) %}}{{% for i in range({m}) %}}{{% set n.a = [n.a] %}}{{% endfor %}}{{{{ n.a }}}}",
    "{{% set n = namespace(a=[1]) %}}{{% for i in range({m}) %}}{{% set n.a = n.a|batch(2) %}}{{% endfor %}}"
    "{{{{ n.a|list }}}}",
    "{{% macro f(x) %}}{{{{ f(x+1) }}}}{{% endmacro %}}{{{{ f(0) }}}}",
    "{{% macro f(x) %}}{{{{ x and f(x-1) ~ f(x-1) }}}}{{% endmacro %}}{{{{ f({k}) }}}}",
    "{{% for a in range({m}) %}}{{% for b in range({m}) %}}{{% endfor %}}{{% endfor %}}",
    "{{% for a in range({m}) recursive %}}{{{{ loop(range({m})) if loop.depth0 < {k} }}}}{{% endfor %}}",
    "{{% for a in range({m}) %}}{{{{ 'x' * {m} }}}}{{% endfor %}}",
    "{{% set x = dict.fromkeys(range({m})) %}}{{{{ x|dictsort|tojson(indent={m}) }}}}",
)
OPENINGS = (
    "{% if 1 %}", "{% for i in [1] %}", "{% macro f() %}", "{% set x %}", "{% call f() %}", "{% with %}", "{% raw %}",
    "{% filter e %}", "{% if 1 %}{% elif 1 %}", "{% generation %}", "{% block a %}", "{% autoescape 1 %}", "{# ",
    "{{ (", "{{ [", "{{ not ", "{{ -", "{{ 1+", "{{ a.", "{{ a|e", "{{ a()", "{{ a[0]", "{{ 2**", "{{ 1~", "{{ 1<",
    "{{ {1:", "{{ 1 if ", "{{ 1 and ",
)  # fmt: skip
TOKENS = [
    *OPENINGS,
    "{{",
    "}}",
    "{%",
    "%}",
    "#}",
    "{%-",
    "-%}",
    "endif",
    "endfor",
    "'",
    '"',
    "\\",
    "\n",
    "|",
    ".",
    "(",
    ")",
]
TOKENS += [
    "[",
    "]",
    "range(9)",
    "messages",
    "\x00",
    "\u2028",
    "\ud800",
    "\U0001f600",
    "%}x{%",
    "else",
    "in",
    "is",
    "{% break %}",
]
TOKENS += [
    "{% endif %}",
    "{% endfor %}",
    "{{ raise_exception('no') }}",
    "{% include 'a' %}",
    "{% extends a %}",
    "{% import 'a' as b %}",
]


HEAD = "{% set ns = namespace(a=1) %}{% set x = 'x' %}{% set y = [1, 'b'] %}{% set m = messages[-1] %}"
"""Defines the names that expressions use."""


class Grammar:
    """Generates a template. ``great`` is the probability of an expression with a large number or result."""

    def __init__(self, random: Random, great: float) -> None:
        self.random, self.great = random, great

    def template(self) -> str:
        return HEAD + self.body(3, False)

    def body(self, depth: int, looping: bool) -> str:
        return "".join(self.statement(depth, looping) for _ in range(self.random.randint(1, 3 if depth else 1)))

    def statement(self, depth: int, looping: bool) -> str:
        pick, choice = self.random.randrange, self.random.choice

        def e(depth: int) -> str:
            return self.expression(depth, looping)

        def inner(looping: bool = looping) -> str:
            return self.body(depth - 1, looping)

        match pick(17) if depth else pick(4):
            case 0:
                return choice((" text ", "\n", "  \n  ", "<|im_start|>", "{# c #}", "{% raw %}{{ x }}{% endraw %}"))
            case 1 | 2 | 3:
                return self.tag("{{", f" {e(2)} ", "}}")
            case 4:
                return self.block(f"set {choice(('x', 'y', 'ns.a'))} = {e(2)}")
            case 5 | 6:
                other = self.block(f"elif {e(1)}") + inner() if pick(2) else ""
                other += self.block("else") + inner() if pick(2) else ""
                return self.block(f"if {e(1)}") + inner() + other + self.block("endif")
            case 7 | 8:
                what = choice(("messages", "messages", "range(3)", "[1, 2]", "'abc'", "m.tool_calls or []", e(1)))
                extra = f" if {e(1)}" if pick(4) == 0 else ""
                other = self.block("else") + inner() if pick(5) == 0 else ""
                return self.block(f"for {choice('mx')} in {what}{extra}") + inner(True) + other + self.block("endfor")
            case 9:
                what = choice(("{'a': 1}", "messages[0]", "m", "dict(a=x)"))
                return self.block(f"for x, y in {what}.items()") + inner(True) + self.block("endfor")
            case 10:
                call = self.tag("{{", f" f({e(1)}) ", "}}")
                return self.block(f"macro f(x, y={e(1)})") + inner(False) + self.block("endmacro") + call
            case 11:
                return self.block("set x") + inner() + self.block("endset")
            case 12:
                return self.block(f"filter {choice(TEXT_FILTERS)}") + inner() + self.block("endfilter")
            case 13:
                return self.block(f"with x = {e(1)}") + inner() + self.block("endwith")
            case 14:
                return self.block("generation") + inner(False) + self.block("endgeneration")
            case 15 if looping:
                return self.block(f"if {e(1)}") + self.block(choice(("break", "continue"))) + self.block("endif")
            case 15:
                return "{% macro g() %}[{{ caller() }}]{% endmacro %}{% call g() %}" + inner() + "{% endcall %}"
            case _:
                return self.block(f"if {e(1)} == {e(0)}") + "{{ raise_exception(" + e(1) + ") }}" + self.block("endif")

    def block(self, inside: str) -> str:
        return self.tag("{%", f" {inside} ", "%}")

    def tag(self, left: str, inside: str, right: str) -> str:
        sign = self.random.choice(("", "", "", "-"))
        return left + sign + inside + self.random.choice(("", "", sign)) + right

    def expression(self, depth: int, looping: bool) -> str:
        pick, choice = self.random.randrange, self.random.choice
        if self.random.random() < self.great:
            return self.great_expression(depth, looping)
        if depth == 0:
            name = choice(LOOP_NAMES) if looping and pick(5) == 0 else choice(NAMES)
            return choice((name, name, f"'{choice(TEXTS)}'", choice(NUMBERS)))

        def e(depth: int) -> str:
            return self.expression(depth, looping)

        def text(depth: int) -> str:  # usually cast to text, since most operations fail on other values
            return f"(({e(depth)}) | string)" if pick(12) else f"({e(depth)})"

        def number(depth: int) -> str:
            return f"(({e(depth)}) | {choice(('int', 'length', 'int', 'float'))})" if pick(12) else f"({e(depth)})"

        match pick(15):
            case 0 | 1 | 2:
                return e(0)
            case 3:
                operator = choice(ARITHMETIC)
                right = choice(NUMBERS[:6]) if operator in ("*", "**") else number(depth - 1)
                return f"({number(depth - 1)} {operator} {right})"
            case 4:
                operator = choice(("+", "+", "~", "<", ">=", "in", "not in"))
                return f"({text(depth - 1)} {operator} {text(depth - 1)})"
            case 5:
                return f"({e(depth - 1)} {choice(('~', '==', '!=', 'and', 'or'))} {e(depth - 1)})"
            case 6:
                return f"{e(depth - 1)} | {choice(FILTERS)}"
            case 7:
                return f"{text(depth - 1)} | {choice(TEXT_FILTERS)}"
            case 8:
                return f"({e(depth - 1)} is {choice(('', 'not '))}{choice(TESTS)})"
            case 9 | 10:
                return f"{text(depth - 1)}.{choice(METHODS)}"
            case 11:
                return f"({e(0)} if {e(depth - 1)} else {e(0)})"
            case 12:
                lists = (f"[{e(depth - 1)}, {e(0)}]", f"{{'a': {e(depth - 1)}}}", f"({e(0)}, {e(depth - 1)})")
                return choice(lists)
            case 13:
                return f"{text(depth - 1)}[{choice(('0', '-1', '1:', ':2', '::-1', '::2', repr('role')))}]"
            case _:
                calls = ("range(3)", "dict(a=1)", "strftime_now('%Y')", "cycler(1,2).next()", "m.get('role', 1)")
                return choice((f"not {e(depth - 1)}", *calls))

    def great_expression(self, depth: int, looping: bool) -> str:
        choice, number = self.random.choice, self.random.choice(GREAT)
        left = self.expression(depth - 1, looping) if depth else choice(("'a'", "[1]", "messages", "range(9999)", "1"))
        match self.random.randrange(8):
            case 0:
                return number
            case 1:
                return f"({left} * {number})"
            case 2:
                return f"({left} ** {number})"
            case 3:
                return f"({left}) | {choice(GREAT_FILTERS).format(n=number)}"
            case 4:
                return f"({left}).{choice(GREAT_METHODS).format(n=number)}"
            case 5:
                return choice(FORMATS).format(n=number)
            case 6:
                ranges = ("range(99999)", f"range({number})", "range(99999) | list")
                return choice((*ranges, f"lipsum(n={number})", f"joiner('a' * {number})"))
            case _:
                return f"({left})[::{number}]"


def plain(random: Random) -> str:
    return Grammar(random, 0).template()


def hostile(random: Random) -> str:
    kind = random.random()
    if kind < 0.02:
        return random.choice(OPENINGS) * random.choice((100, 1000, 10_000, 40_000))
    if kind < 0.06:
        return random.choice(BOMBS).format(k=random.choice((5, 20, 40)), m=random.choice((10, 1000, 99999)))
    grammar = Grammar(random, random.choice((0.02, 0.1)))
    if kind < 0.1:  # raise an error whose message has arbitrary text
        ends = random.choice(("", "\\n\\u2028", "\x1b[2J"))
        text = f"({grammar.expression(1, False)}) ~ '{random.choice(TEXTS)}{ends}' * {random.choice((1, 999, 10**6))}"
        return HEAD + "{{ raise_exception(" + text + ") }}"
    return grammar.template()


def damaged(random: Random, source: str) -> str:
    """Apply one to four random edits to a template."""
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(source) + 1)
        stop = min(len(source), start + random.choice((0, 1, 3, 20)))
        part = random.choice(("", random.choice(TOKENS), source[start:stop] * 2, source[stop : stop + 20]))
        source = source[:start] + part + source[stop:]
    return source


def garbage(random: Random) -> str:
    return "".join(random.choices(TOKENS, k=random.randint(1, 40)))
