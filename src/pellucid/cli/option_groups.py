"""Groups of options that several commands share.

A group is a parameter of a command that stands for several options. Its type is a dataclass whose fields are the
options, or ``Annotated[Kind, OptionGroup(options)]``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args


@dataclass(frozen=True)
class OptionGroup:
    """Options for the fields of a class: an annotation (type and ``typer.Option``) for each field's name."""

    options: Mapping[str, Any]


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command's function with its groups replaced by their options, as Typer needs it."""
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind, options = _group(parameter.annotation)
        if kind is None:
            parameters.append(parameter)
        else:
            groups[parameter.name] = kind, [option.name for option in options]
            parameters += [option.replace(kind=parameter.kind) for option in options]

    def call(**values: Any) -> None:
        grouped = {
            name: kind(**{option: values.pop(option) for option in options})
            for name, (kind, options) in groups.items()
        }
        command(**values, **grouped)

    return with_parameters(call, command, parameters) if groups else command


def _group(annotation: Any) -> tuple[Any, list[inspect.Parameter]]:
    """The class of a group and its options. The class is None for a parameter that is a single option."""
    if is_dataclass(annotation):
        return annotation, list(inspect.signature(annotation, eval_str=True).parameters.values())  # type: ignore[arg-type]
    kind, *details = get_args(annotation) or (None,)
    for detail in details:
        if isinstance(detail, OptionGroup):
            fields = inspect.signature(kind).parameters
            return kind, [fields[name].replace(annotation=shown) for name, shown in detail.options.items()]
    return None, []


def with_parameters(
    call: Callable[..., None], command: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give ``call`` the docstring of a command and these parameters."""
    call.__doc__ = command.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call
