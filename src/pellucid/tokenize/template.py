"""A conversation → one text, by the Jinja template that came with the model.

In: messages and variables. Out: the text that the model was trained to continue. The template is a program
from a stranger: it runs in Jinja's immutable sandbox, for at most ``SECONDS``, may write at most ``CHARACTERS``
and may build no greater values on the way. The names that templates may use are those of ``transformers``
(``utils/chat_template_utils.py``): ``raise_exception``, ``strftime_now``, ``tojson``, loop controls and the
``{% generation %}`` tag, which marks what an assistant said and prints its contents.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from pellucid.errors import TemplateError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

SECONDS = 5.0
CHARACTERS = 10_000_000
SOURCE_CHARACTERS = 1_000_000
NAME = "<chat template>"
PADDING = ("ljust", "rjust", "center", "zfill", "expandtabs")
"""Methods of strings that make much out of little."""

_deadline: ContextVar[float] = ContextVar("deadline")


class _TooMuch(Exception):
    """A limit was reached."""


def render(source: str | None, **variables: Any) -> str:
    """The text that the template makes of the variables.

    Raises :class:`TemplateError`, in one line that names the template's line, when the template cannot be
    parsed, fails, calls ``raise_exception`` or reaches a limit.
    """
    if source is None:
        raise TemplateError("this model has no chat template; give the prompt as one text instead")
    deadline = _deadline.set(time.monotonic() + SECONDS)
    chunks, length = [], 0
    try:
        for chunk in _compiled(source).generate(**variables):
            chunks.append(chunk)
            length += len(chunk)
            if length > CHARACTERS:
                raise _TooMuch(f"it wrote more than {CHARACTERS:,} characters")
            _check_time()
    except Exception as error:
        _explain(error)
    finally:
        _deadline.reset(deadline)
    return "".join(chunks)


def guard(
    messages: Sequence[Mapping[str, Any]], control_tokens: Iterable[str]
) -> tuple[list[Mapping[str, Any]], str]:
    """(messages in which no control token can be recognised, mark).

    The mark is a noncharacter that no message holds; it is put after the first character of every control
    token in messages that are not the assistant's. Take it out when the control tokens have been found.
    """
    whole = str(messages)
    mark = next((chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in whole), None)
    if mark is None:
        raise TemplateError("the messages hold all of the noncharacters U+FDD0 to U+FDEF; take them out")
    present = sorted(
        (token for token in control_tokens if token and token[0] in whole), key=len, reverse=True
    )

    def broken(value: Any) -> Any:
        if isinstance(value, str):
            for token in present:
                if token in value:
                    value = value.replace(token, token[0] + mark + token[1:])
            return value
        if isinstance(value, Mapping):
            return {key: item if key in ("role", "type") else broken(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [broken(item) for item in value]
        return value

    return [message if message.get("role") == "assistant" else broken(message) for message in messages], mark


def _check_time() -> None:
    if time.monotonic() > _deadline.get():
        raise _TooMuch(f"it ran for more than {SECONDS:g} seconds")


def _check_size(value: Any) -> Any:
    if isinstance(value, (str, list, tuple, bytes)) and len(value) > CHARACTERS:
        raise _TooMuch(f"it built a value of {len(value):,} parts; {CHARACTERS:,} are allowed")
    return value


def _paced(items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, as long as there is time."""
    for item in items:
        _check_time()
        yield item


def _explain(error: Exception) -> NoReturn:
    from jinja2 import TemplateSyntaxError

    line = getattr(error, "lineno", None) if isinstance(error, TemplateSyntaxError) else None
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == NAME:
            line = at.tb_lineno
        at = at.tb_next
    what = " ".join(str(error).split()) or "no reason given"
    if isinstance(error, RecursionError):
        what = "it is nested too deeply"
    elif not isinstance(error, (_TooMuch, TemplateSyntaxError)) and type(error).__module__ == "builtins":
        what = f"{type(error).__name__}: {what}"
    raise TemplateError(f"chat template{'' if line is None else f', line {line}'}: {what}") from None


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    from jinja2 import nodes

    if len(source) > SOURCE_CHARACTERS:
        raise _TooMuch(f"it has {len(source):,} characters; {SOURCE_CHARACTERS:,} are allowed")
    environment = _environment()
    tree = environment.parse(source, NAME, NAME)
    # A loop without output or calls never comes back to us: every loop asks for the time itself. Joining by ~
    # does not pass through the sandbox's operators, so its result is measured too.
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, "_paced", [], [], None, None, lineno=loop.lineno)
    for output in list(tree.find_all(nodes.Concat)):
        output.nodes = [
            nodes.Filter(nodes.Concat(output.nodes, lineno=output.lineno), "_sized", [], [], None, None)
        ]
    tree.set_environment(environment)
    for node in tree.find_all(nodes.Filter):
        if node.lineno is None:
            node.set_lineno(1)
    code = environment.compile(tree, NAME, NAME)
    return environment.template_class.from_code(environment, code, environment.make_globals(None), None)


@cache
def _environment() -> Environment:
    import json
    from datetime import datetime

    from jinja2 import nodes
    from jinja2.exceptions import TemplateRuntimeError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "+", "%"})

        def call_binop(self, context: Context, operator_: str, left: Any, right: Any) -> Any:
            _check_time()
            if operator_ == "*":
                for value, count in ((left, right), (right, left)):
                    if (
                        hasattr(value, "__len__")
                        and isinstance(count, int)
                        and len(value) * count > CHARACTERS
                    ):
                        raise _TooMuch(f"a value repeated {count:,} times is too long")
                _refuse_great(left, right)
            elif operator_ == "**":
                _refuse_great(left, right)
                if isinstance(right, int) and abs(right) > 64:
                    raise _TooMuch(f"an exponent of {right:,} is too great; 64 is allowed")
            elif operator_ == "%" and isinstance(left, str):
                _refuse_widths(left, right)
            return _check_size(super().call_binop(context, operator_, left, right))

        def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            _check_time()
            name = getattr(__obj, "__name__", "")
            if isinstance(getattr(__obj, "__self__", None), str) and name in PADDING:
                _refuse_widths("", args, wide=True)
            return _check_size(super().call(__context, __obj, *args, **kwargs))

        def getattr(self, obj: Any, attribute: str) -> Any:
            return self._measured(obj, attribute, super().getattr(obj, attribute))

        def getitem(self, obj: Any, argument: Any) -> Any:
            return self._measured(obj, argument, super().getitem(obj, argument))

        def _measured(self, obj: Any, name: Any, value: Any) -> Any:
            """``str.format``, which the sandbox has wrapped already, wrapped once more."""
            if not isinstance(obj, str) or name not in ("format", "format_map") or not callable(value):
                return value

            def bounded(*args: Any, **kwargs: Any) -> Any:
                _refuse_widths(obj, (*args, *kwargs.values()))
                return value(*args, **kwargs)

            return bounded

    def _refuse_great(*values: Any) -> None:
        for value in values:
            if isinstance(value, int) and value.bit_length() > 1024:
                raise _TooMuch("an integer has more than 1,024 bits")

    def _refuse_widths(text: str, arguments: Any, wide: bool = False) -> None:
        """Padding is the one way to make much out of little by formatting."""
        import re

        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        wide = wide or "*" in text or re.search(r"\{[^{}]*\{", text) is not None
        great = wide and any(isinstance(value, int) and value > CHARACTERS for value in arguments)
        if great or re.search(r"\d{7}", text):
            raise _TooMuch("a padding width is too great")

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message: str) -> NoReturn:
        raise TemplateRuntimeError(str(message))

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation], cache_size=0
    )
    for unsafe in ("center", "xmlattr", "urlize", "pprint", "random", "format"):
        environment.filters.pop(unsafe)
    environment.globals.pop("lipsum")
    environment.filters.update(tojson=tojson, _paced=_paced, _sized=_check_size)
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment
