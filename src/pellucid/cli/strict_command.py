"""A command that refuses empty values of its options."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from pellucid.cli import common


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
            if (
                parameter.param_type_name == "option"
                and "" in values
                and parameter.name not in common.MAY_BE_EMPTY
            ):
                raise typer.BadParameter("it is empty: give a value, or leave the option out", ctx, parameter)
        return super().parse_args(ctx, args)
