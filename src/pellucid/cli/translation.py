"""Replaces the names of other engines in a command line by Pellucid's names, before Typer reads it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand

from pellucid.cli.other_words import COMMANDS, OPTIONS, REFUSED_COMMANDS, OtherOption
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import shown

FLAGS = {"--version", "--help", "-h", "--install-completion", "--show-completion"}
_SWITCHES = {"on", "off", "auto", "true", "false", "0", "1"}


def translated_command(arguments: Sequence[str]) -> list[str]:
    """A command line with Pellucid's names of commands. Without a command, options of a model mean ``run``.

    Raises:
        InvalidRequest: the command of another engine has no counterpart here; the message says what to do.
    """
    first, *rest = arguments or [""]
    if first in REFUSED_COMMANDS:
        raise InvalidRequest(f"there is no {first}: {REFUSED_COMMANDS[first]}")
    if first == "help":
        return [*COMMANDS.get(rest[0], rest[:1]), *rest[1:], "--help"] if rest else ["--help"]
    if first in COMMANDS:
        return [*COMMANDS[first], *rest]
    if first.startswith("-") and first not in FLAGS and any(map(_names_a_model, arguments)):
        return ["run", *arguments]
    return list(arguments)


def _names_a_model(argument: str) -> bool:
    name = _normal(argument.partition("=")[0])
    return any(one.to.startswith("MODEL") and name in one.names.split() for one in OPTIONS)


class TranslatingCommand(TyperCommand):
    """A command that accepts the options of other engines, and shows their names in its help."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._own = {name: param for param in self.params for name in (*param.opts, *param.secondary_opts)}
        self._slots = {_slot(param): param for param in self.params if param.param_type_name == "argument"}
        for target, names in self.other_names().items():
            param: Any = self._slots.get(target) or self._own[target]
            param.help = f"{param.help or ''} [also {', '.join(names)}]".strip()

    def other_names(self) -> dict[str, list[str]]:
        """The names of other engines, by the option or argument of this command that they stand for."""
        found = dict[str, list[str]]()
        for one in OPTIONS:
            if target := self._target(one)[0]:
                names = [
                    name for name in one.names.split() if name not in self._own and self._option(name) is one
                ]
                found.setdefault(target, []).extend(names)
        return {target: names for target, names in found.items() if names}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # A line that a shell completes is not a command yet.
        return super().parse_args(ctx, args if ctx.resilient_parsing else self.translated(args))

    def translated(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with this command's own names: options first, then ``--`` and the values of the arguments.

        Raises:
            InvalidRequest: an option of another engine is refused; the message says why, and what to do.
        """
        rest = list(arguments)
        options, words, named = list[str](), list[str](), dict[str, list[str]]()
        while rest:
            word = rest.pop(0)
            if word == "--":
                words += rest
                break
            if not word.startswith("-") or word == "-":
                word = self._assignment(word, bool(words)) or word
                if not word.startswith("--"):
                    words.append(word)
                    continue
            self._translate(word, rest, options, named)
        positional = list(self._positional(words, named))
        return [*options, *(["--", *positional] if positional else [])]

    def _translate(self, word: str, rest: list[str], options: list[str], named: dict[str, list[str]]) -> None:
        """Move an option and its value to ``options``, or its value to the argument in ``named``."""
        name, equals, value = word.partition("=")
        name = name if name in self._own else _normal(name)
        given = value if equals else None
        param: Any = self._own.get(name)
        if param is not None:
            options.append(name + equals + value)
            if given is None and not param.is_flag and rest:
                options.append(rest.pop(0))
            return
        other = self._option(name)
        if other is None:
            options.append(word)  # Typer's error names it
            return
        target, prefix = self._target(other)
        takes = bool(other.value)
        if given is None and takes and rest and (other.value[0] != "[" or rest[0].lower() in _SWITCHES):
            given = rest.pop(0)
        if given is None and takes and other.value[0] != "[":
            raise InvalidRequest(f"{name}: a value is missing: {name} {other.value}")
        if (replacement := other.words.get((given or "").lower())) is not None:
            options += replacement
        elif target and given is not None:
            if target in self._slots:
                named.setdefault(target, []).append(prefix + given)
            else:
                options += [target, prefix + given]
        else:
            line = f"{name}{'' if given is None else f' {shown(given)}'}: {other.why}"
            if other.refused or not other.why:
                raise InvalidRequest(line)
            print(f"pellucid: {line}", file=sys.stderr)

    def _option(self, name: str) -> OtherOption | None:
        """The option of other engines with a name: preferably an option with a target in this command."""
        found = [one for one in OPTIONS if name in one.names.split()]
        return next((one for one in found if self._fits(one)), None)

    def _fits(self, other: OtherOption) -> bool:
        """True if the command has the target of the option; an option without a target fits if its words exist."""
        if other.to:
            return bool(self._target(other)[0])
        return all(
            word in self._own for words in other.words.values() for word in words if word.startswith("--")
        )

    def _target(self, other: OtherOption) -> tuple[str, str]:
        """The option or argument of this command that is meant ("" if it has none), and the prefix of the value."""
        for target in filter(None, other.to.split(",")):
            name, _, prefix = target.partition(" ")
            if name in self._own or name in self._slots:
                return name, prefix
        return "", ""

    def _assignment(self, word: str, after_model: bool) -> str | None:
        """``--name=value`` for ``name=value``, as transformers' chat takes options after the model."""
        name, equals, value = word.partition("=")
        option = _normal(f"--{name}")
        if not (equals and after_model and self.name == "chat" and name.isidentifier()):
            return None
        return f"{option}={value}" if option in self._own or self._option(option) else None

    def _positional(self, words: list[str], named: dict[str, list[str]]) -> Iterator[str]:
        """The values of the arguments in their order: named values, then words. Ends where a value is missing."""
        for slot, param in self._slots.items():
            values = named.get(slot, [])
            if param.nargs == -1:
                values, words = [*values, *words], []
            elif not values and words:
                values, words = words[:1], words[1:]
            if not values:
                return
            yield from values
        yield from words  # too many, as Typer's error says


def _slot(param: Any) -> str:
    """The name of an argument in documents, such as MODEL."""
    return str(param.metavar or param.name.upper())


def _normal(name: str) -> str:
    """An option's name with dashes: ``--max_new_tokens`` is ``--max-new-tokens``."""
    return name.replace("_", "-") if name.startswith("--") else name
