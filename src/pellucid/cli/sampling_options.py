"""Generation options on the command line: the options of every sampler step, and of ``Options``.

A command that takes ``**sampling`` is declared with ``sampling=True``. The options are built only for the command that
runs, because building the options imports the sampler steps and NumPy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from pellucid.cli import common
from pellucid.cli.option_groups import with_parameters

TEXTS = {"json_schema", "regex", "grammar"}
"""Options whose values are long texts, which may be in a file."""


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command's function with a parameter for each generation option, as Typer needs it."""
    declared = inspect.signature(command, eval_str=True).parameters
    kept = [parameter for parameter in declared.values() if parameter.kind is not parameter.VAR_KEYWORD]
    names = {parameter.name for parameter in kept}
    parameters = [*kept, *(parameter for parameter in _parameters() if parameter.name not in names)]

    def call(**values: Any) -> None:
        command(**values)

    return with_parameters(call, command, parameters)


def checked(sampling: Mapping[str, Any], **usual: Any) -> dict[str, Any]:
    """The given options, and the ``usual`` values of options that are not given.

    The options are checked here, so that errors appear before a model is loaded. ``@FILE`` as the value of one of
    ``TEXTS`` stands for the text of the file.
    """
    from pellucid.sample.options import Options

    options = {**usual, **{name: value for name, value in sampling.items() if value is not None}}
    for name in options.keys() & TEXTS:
        options[name] = common.text_or_file(options[name])
    Options.of(**options)
    return options


def _parameters() -> list[inspect.Parameter]:
    from pellucid.sample.options import Options
    from pellucid.sample.step import options_of, owners

    parameters = []
    for name, owner in owners().items():
        field = options_of(owner)[name]
        default = field.default if isinstance(field.default, (int, float)) else None
        more = " @FILE: the text of a file." if name in TEXTS else ""
        parameters.append(
            _parameter(
                name, field.metadata["help"] + more, field.metadata["parse"] or _reader(default), default
            )
        )
    own = {
        "samplers": (
            "Sampler steps in their order, separated by commas. Default: all steps with an effect.",
            _split_names,
        ),
        "seed": ("Seed of the random numbers. Default: random.", common.to_int),
        "stop": ("Stop string: the text ends before it. May be repeated.", None),
        "stop_token_ids": ("Stop tokens: ids, separated by commas.", _split_ids),
        "ignore_eos": ("Continue after the model's end-of-text tokens.", bool),
        "max_new_tokens": ("Maximum generated tokens. Default: the rest of the context.", common.to_int),
        "max_time": ("Maximum seconds of the generation.", common.to_float),
    }
    assert all(hasattr(Options, name) for name in own)
    parameters += [_parameter(name, help, parse) for name, (help, parse) in own.items()]
    return parameters


def _parameter(
    name: str, help: str, parse: Callable[[str], Any] | None, default: Any = None
) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    if default is not None:
        help += f" [default: {default:g}]"
    kind: Any
    if parse is None:
        kind, option = list[str] | None, typer.Option(flag, help=help, metavar="TEXT")
    elif parse is bool:
        kind, option = bool | None, typer.Option(flag, help=help)
    else:
        metavar = "N" if parse is common.to_int else "NUMBER" if parse is common.to_float else "TEXT"
        kind, option = Any, typer.Option(flag, help=help, parser=parse, metavar=metavar)
    annotation = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _reader(default: Any) -> Callable[[str], Any]:
    return common.to_float if isinstance(default, float) else common.to_int


def _split_names(text: str) -> list[str]:
    return [name.strip() for name in text.replace(";", ",").split(",") if name.strip()]


def _split_ids(text: str) -> list[Any]:
    return [common.to_int(part) for part in text.split(",") if part.strip()]
