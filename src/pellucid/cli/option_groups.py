"""Groups of options that several commands share.

A parameter of a command whose type is a dataclass is a group: each field of the dataclass is an option.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command's function with its groups replaced by their options, as Typer needs it."""
    given = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in given if is_dataclass(one.annotation)}
    parameters: list[inspect.Parameter] = []
    for one in given:
        own = inspect.signature(groups[one.name], eval_str=True) if one.name in groups else None
        parameters += [each.replace(kind=one.kind) for each in own.parameters.values()] if own else [one]

    def call(**values: Any) -> None:
        made = {
            name: kind(**{each.name: values.pop(each.name) for each in fields(kind)})
            for name, kind in groups.items()
        }
        command(**values, **made)

    return with_parameters(call, command, parameters) if groups else command


def with_parameters(
    call: Callable[..., None], command: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give ``call`` the docstring of a command and these parameters."""
    call.__doc__ = command.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call
