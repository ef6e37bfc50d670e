"""Replaces the names of other engines in a command line by Pellucid's names, before Typer reads it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from pellucid.cli import common
from pellucid.cli.other_words import COMMANDS, OPTIONS, PROGRAMS, REFUSED_COMMANDS, OtherOption
from pellucid.errors import InvalidRequest, shown

# A command that refuses empty values of its options.


class StrictCommand(TyperCommand):
    """A command that refuses empty values of options, except texts for the model (``common.MAY_BE_EMPTY``).

    An empty value is usually an unset variable of a script. Without this check it would count as no value, and for
    example a server would start without a key.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            value = given.get(str(parameter.name))
            values = value if isinstance(value, list) else [value]
            if parameter.param_type_name == "option" and "" in values and parameter.name not in common.MAY_BE_EMPTY:
                raise typer.BadParameter("it is empty: give a value, or leave the option out", ctx, parameter)
        return super().parse_args(ctx, args)


FLAGS = {"--version", "--help", "-h", "--install-completion", "--show-completion"}
"""Options of ``pellucid`` itself."""
HELP = {"-h", "--help"}
NUMBER = re.compile(r"[-+]?\d[\d_,.:-]*([kKmMgGtT]|[eE][-+]?\d+)?|inf|auto|all")
"""Matches values of options whose value is a number: also lists of numbers, and words that stand for a number."""
SWITCHES = {"on", "off", "auto", "true", "false", "0", "1"}
"""Words that are taken as the value of an option whose value may be missing."""


def translated_command(arguments: Sequence[str]) -> list[str]:
    """A command line with Pellucid's names of commands. Without a command, options of a model mean ``run``."""
    first, *rest = arguments or [""]
    if rest == ["--version"] and not first.startswith("-"):
        return rest
    if first in PROGRAMS and rest:
        return translated_command(rest)
    if (name := first.removeprefix("llama-")) != first:
        return translated_command([name, *rest])
    if (name := first.removesuffix(".py").replace("_", "-")) != first and (
        name in COMMANDS or name in REFUSED_COMMANDS
    ):
        return translated_command([name, *rest])
    for length in (3, 2, 1):
        phrase = " ".join(arguments[:length])
        if phrase in REFUSED_COMMANDS:
            raise InvalidRequest(f"there is no {phrase}: {REFUSED_COMMANDS[phrase]}")
        if phrase in COMMANDS:
            return [*COMMANDS[phrase], *arguments[length:]]
    if first == "help":
        return [*COMMANDS.get(rest[0], rest[:1]), *rest[1:], "--help"] if rest else ["--help"]
    is_prompt = first not in FLAGS and (first.startswith("-") or " " in first)  # the program llm needs no command
    if is_prompt and any(map(_names_a_model, arguments)):
        return ["run", *arguments]
    return list(arguments)


def _names_a_model(argument: str) -> bool:
    name = _normal(argument.partition("=")[0])
    return any(one.to.startswith("MODEL") and name in one.names.split() for one in OPTIONS)


class TranslatingCommand(StrictCommand):
    """A command that accepts the options of other engines, and shows their names in its help.

    Attributes:
        own: the command's options, by each of their names.
        slots: the command's arguments in their order, by their names in documents, such as MODEL.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        given: list[Any] = [param for param in self.params if param.param_type_name == "option"]
        self.path = f"pellucid {self.name}"
        self.own: Mapping[str, Any] = {name: param for param in given for name in (*param.opts, *param.secondary_opts)}
        others: list[Any] = [param for param in self.params if param not in given]
        self.slots: Mapping[str, Any] = {str(param.metavar or param.name.upper()): param for param in others}
        for target, names in self._other_names().items():
            param = self.slots.get(target) or self.own[target]
            param.help = f"{param.help or ''} [also {', '.join(names)}]".strip()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self.path = ctx.command_path
        # A line that a shell completes is not a command yet.
        return super().parse_args(ctx, args if ctx.resilient_parsing else self.translated(args))

    def translated(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with this command's own names: options first, then ``--`` and the values of the arguments."""
        return _Line(self, arguments).read()

    def option(self, name: str, value: str | None = None) -> OtherOption | None:
        """The option of other engines with a name that has a meaning in this command; None if there is none.

        Programs give one name different meanings: ``-c 4096`` is a context, ``-c TEXT`` is a text. An option that
        takes ``value`` comes first.
        """
        found = [one for one in OPTIONS if name in one.names.split() and self._has_meaning(one)]
        fitting = (one for one in found if value is None or one.value != "N" or NUMBER.fullmatch(value))
        return next(fitting, found[0] if found else None)

    def target(self, other: OtherOption) -> tuple[str, str]:
        """The option or argument of this command that is meant ("" if it has none), and the prefix of the value."""
        for target in filter(None, other.to.split(",")):
            name, _, prefix = target.partition(" ")
            own = self.own.get(name)
            # Options with equal names may differ: --prompt is a number of tokens in bench, and a text in embed.
            if name in self.slots or (own and (other.value != "N" or own.metavar == "N")):
                return name, prefix
        return "", ""

    def _has_meaning(self, other: OtherOption) -> bool:
        if other.to:
            return bool(self.target(other)[0])
        replacing = (word for words in other.words.values() for word in words)
        return all(word in self.own for word in replacing if word.startswith("--"))

    def _other_names(self) -> dict[str, list[str]]:
        """The names of other engines, by the option or argument of this command that they stand for."""
        found = dict[str, list[str]]()
        for one in OPTIONS:
            if target := self.target(one)[0]:
                names = [name for name in one.names.split() if name not in self.own and self.option(name) is one]
                found.setdefault(target, []).extend(names)
        return {target: names for target, names in found.items() if names}


class _Line:
    """A command line that is translated word by word. ``named`` are the values of arguments that options name."""

    def __init__(self, command: TranslatingCommand, arguments: Sequence[str]) -> None:
        self._command, self._rest = command, list(arguments)
        self._options, self._words = list[str](), list[str]()
        self._named = dict[str, list[str]]()
        self._content: str | None = None
        """The text of -c."""

    def read(self) -> list[str]:
        while self._rest:
            word = self._rest.pop(0)
            if word == "--":
                self._words += self._rest
                break
            word = self._assignment(word) or word
            if not word.startswith("-") or word == "-":
                self._words.append(word)
            elif not self._option(word):
                return self._options
        positional = list(self._positional())
        return [*self._options, *(["--", *positional] if positional else [])]

    def _option(self, word: str) -> bool:
        """Read an option and its value. Returns False if an own option has no value: Typer's error says so."""
        name, equals, value = word.partition("=")
        name = name if name in self._command.own else _normal(name)
        if (own := self._command.own.get(name)) is not None:
            self._options.append(name + equals + value)
            if equals or own.is_flag:
                return True
            values, self._rest = self._rest[: own.nargs], self._rest[own.nargs :]
            self._options += values
            return len(values) == int(own.nargs)
        if name in ("-o", "--option") and not equals and self._is_pair():
            key, given, *self._rest = self._rest  # as in the program llm
            self._rest.insert(0, f"--{key}={given}")
        elif name in HELP:
            self._options.append(name)
        elif (other := self._command.option(name, value if equals else next(iter(self._rest), ""))) is not None:
            self._other(other, name, value if equals else self._value_of(other))
        else:
            raise InvalidRequest(self._unknown(name))
        return True

    def _is_pair(self) -> bool:
        """True if an option's name and its value follow: ``-o temperature 0.5``."""
        option = _normal(f"--{self._rest[0]}") if len(self._rest) > 1 else ""
        return option in self._command.own or (option != "--" and self._command.option(option) is not None)

    def _unknown(self, name: str) -> str:
        """The error for an option that is unknown here: the nearest names, or the commands that have the option."""
        from difflib import get_close_matches

        path = self._command.path
        known = dict.fromkeys([*self._command.own, *(one for option in OPTIONS for one in option.names.split())])
        here = [one for one in known if one in self._command.own or self._command.option(one)]
        near = get_close_matches(name, here, 3, 0.8)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        return f"No such option: {shown(name)}. {hint}See {path} --help."

    def _value_of(self, other: OtherOption) -> str | None:
        """The value of an option in the next word, if the option takes it."""
        optional = other.value.startswith("[")
        takes = bool(other.value) and bool(self._rest) and (not optional or self._rest[0].lower() in SWITCHES)
        return self._rest.pop(0) if takes else None

    def _other(self, other: OtherOption, name: str, value: str | None) -> None:
        """Replace an option of another engine, explain it, or refuse it."""
        if value is None and other.value and not other.value.startswith("["):
            raise InvalidRequest(f"{name}: a value is missing: {name} {other.value}")
        if value is not None and not other.value:
            raise InvalidRequest(f"{name}={shown(value)}: {name} takes no value: leave it out")
        target, prefix = self._command.target(other)
        if (words := other.words.get((value or "").lower())) is not None:
            self._options += words
        elif target and value is not None:
            if target in self._command.slots:
                self._content = value if name == "-c" else self._content
                self._named.setdefault(target, []).append(prefix + value)
            else:
                self._options += [target, prefix + value]
        else:
            given = f"{name}{'' if value is None else f' {shown(value)}'}"
            known = ", ".join(filter(None, other.words))
            line = f"{given}: {other.why or f'the values are {known}'}"
            if other.refused or not other.why:
                raise InvalidRequest(line)
            print(f"pellucid: {line}", file=sys.stderr)

    def _assignment(self, word: str) -> str | None:
        """``--name=value`` for ``name=value``, as transformers' chat takes options after the model."""
        name, equals, value = word.partition("=")
        if not (equals and self._words and self._command.name == "chat" and name.isidentifier()):
            return None
        option = _normal(f"--{name}")
        own, other = self._command.own.get(option), self._command.option(option)
        takes_value = bool(other and other.value) if own is None else not own.is_flag
        return f"{option}={value}" if takes_value else None

    def _positional(self) -> Iterator[str]:
        """The values of the arguments in their order: named values, then words. Ends where a value is missing."""
        words = self._words
        for slot, param in self._command.slots.items():
            values = self._named.get(slot, [])
            if param.nargs == -1:
                if words and self._content is not None:  # llm's words there are a collection and an id
                    raise InvalidRequest(
                        f"{shown(words[0])} beside -c {shown(self._content)}: nothing is stored in collections: "
                        "give all texts one way"
                    )
                values, words = [*values, *words], []
            elif not values:
                values, words = words[:1], words[1:]
            if not values:
                return
            yield from values
        yield from words  # too many, as Typer's error says


def _normal(name: str) -> str:
    """An option's name with dashes: ``--max_new_tokens`` is ``--max-new-tokens``."""
    return name.replace("_", "-") if name.startswith("--") else name
