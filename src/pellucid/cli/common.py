"""Shared parts of commands: options, progress bars, opening of files, tables."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from pellucid.cli.command import model_names
from pellucid.errors import InvalidRequest, one_line
from pellucid.util.checks import characters

if TYPE_CHECKING:
    from pellucid.load_options import LoadOptions
    from pellucid.plan.plan import Plan
    from pellucid.weights.checkpoint import Checkpoint


MAY_BE_EMPTY = ("system", "stop")
"""Options whose value may be empty: an empty system message is a message; ``stop`` has its own check."""


def _lenient(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """Reads a number. Text that is no number stays text, and the option's check rejects it."""

    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return read


to_int, to_float = _lenient(int), _lenient(float)

# Kinds of parameters. The default ``...`` belongs to a parameter that must be given, and to a declaration in an
# annotation (``Annotated``), because its parameter states the default.


def number(help: str, default: Any = None) -> Any:
    """A number option. The code that uses the value checks it."""
    return typer.Option(default, help=help, parser=to_float, metavar="NUMBER")


def count(help: str, default: Any = None) -> Any:
    """An integer option. The code that uses the value checks it."""
    return typer.Option(default, help=help, parser=to_int, metavar="N")


def text(metavar: str, help: str, default: Any = None) -> Any:
    """A text option. ``metavar`` stands for the value in the help text."""
    return typer.Option(default, help=help, metavar=metavar)


def flag(name: str, help: str, default: Any = False) -> Any:
    """An option without a value, ``--name``."""
    return typer.Option(default, name, help=help)


def argument(metavar: str, help: str, default: Any = None) -> Any:
    """An argument. ``metavar`` stands for the value in the help text. Shells complete the names of a MODEL."""
    complete = model_names if metavar == "MODEL" else None
    return typer.Argument(default, help=help, metavar=metavar, autocompletion=complete)


MODEL = argument(
    "MODEL",
    "A name that `pellucid list` shows, a path, hf:owner/name[:Q4_K_M], an address of the hub, or pypi:NAME/path.",
    ...,
)
Model = Annotated[str, MODEL]
Prompt = Annotated[
    str | None, argument("PROMPT", "The text to continue, or @FILE. If it is - or missing: standard input.", ...)
]
Texts = Annotated[list[str], argument("TEXT...", "Texts, or @FILE for a file with a text in each line.", ...)]
Truncate = Annotated[bool, flag("--truncate", "Cut texts that are longer than the context, instead of failing.", ...)]
Json = Annotated[bool, flag("--json", "Print one JSON document.", ...)]


def secret(variable: str) -> str | None:
    """The secret in an environment variable; None if the variable is not set. An empty secret is an error, not None."""
    value = os.environ.get(variable)
    if value is not None and not value.strip():
        raise InvalidRequest(f"{variable} is empty: set it to a secret, or unset it")
    return value


def text_or_stdin(text: str | None, absent: str) -> str:
    """``text`` as in ``text_or_file``, or standard input if ``text`` is "-" or None.

    The error for missing input begins with ``absent``.
    """
    if text is None and sys.stdin.isatty():
        raise InvalidRequest(f"{absent}: give a text, or - to read it from standard input")
    return standard_input() if text is None or text == "-" else characters("text", text_or_file(text))


def standard_input() -> str:
    """The text of standard input. Raises InvalidRequest if it is not UTF-8."""
    text = sys.stdin.read()
    try:
        text.encode()
    except UnicodeEncodeError as error:  # an undecodable byte is a surrogate (``main._mend_streams``)
        at = len(text[: error.start].encode())
        raise InvalidRequest(f"standard input: byte {at:,} is not UTF-8: convert it first") from None
    return text


def names_a_file(text: str) -> bool:
    """True if a text is ``@FILE``, which stands for the text of a file. ``@@`` begins a text that begins with ``@``."""
    return len(text) > 1 and text[0] == "@" != text[1]


def text_or_file(text: str) -> str:
    """``text``, or the text of the file if ``text`` is ``@FILE``."""
    if not names_a_file(text):
        return text[1:] if text.startswith("@@") else text
    return file_text(text[1:], "a text that begins with @ begins with @@")


def file_text(file: str, remedy: str) -> str:
    """The text of a file in UTF-8. The error for a file that cannot be read ends with ``remedy``."""
    from pathlib import Path

    from pellucid.errors import reason, shown

    try:
        return Path(file).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{shown(file)}: byte {error.start:,} is not UTF-8: convert the file first") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InvalidRequest(f"{shown(file)}: {reason(error)}; {remedy}") from None


def texts_or_lines(texts: Iterable[str]) -> Iterator[str]:
    """``texts``, with the lines of a file, without empty lines, in place of ``@FILE``."""
    from pellucid.errors import shown

    for text in texts:
        if names_a_file(text):
            lines = list(filter(None, text_or_file(text).splitlines()))
            if not lines:
                raise InvalidRequest(f"{shown(text[1:])}: has no texts: write a text in each line")
            yield from lines
        else:
            yield text_or_file(text)


def beginning(text: str, longest: int = 80) -> str:
    """The beginning of a text in one line, for a table."""
    return one_line(text if len(text) <= longest else text[: longest - 3] + "...")


def fields_of(results: Iterable[Any]) -> list[dict[str, Any]]:
    """The fields of each result, for a JSON document."""
    from msgspec.structs import asdict

    return [asdict(result) for result in results]


def visible(text: str) -> str:
    """Text with visible spaces and escaped unprintable characters."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown).replace(" ", "·")


# The control characters that a terminal interprets, except new lines and tabs.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {0x09, 0x0A}, "\ufffd")


def write(text: str) -> None:
    """Print generated text without delay. Control characters are replaced on a terminal, but not in a pipe."""
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


@contextlib.contextmanager
def progress(*, still: bool = False) -> Iterator[Bars]:
    """Progress bars on standard error, removed at the end; plain lines if standard error is not a terminal.

    ``still`` bars are drawn only on updates, because drawing between updates would take a core from a measurement.
    """
    bars = Bars(still)
    try:
        yield bars
    finally:
        bars.close()


def _counted(text: str, unit: str = "") -> Callable[[Bars, int, int], None]:
    """A bar of ``done`` of ``total`` things."""

    def show(bars: Bars, done: int, total: int) -> None:
        bars._show(text, done, total, f"{done:,} of {total:,}{unit}")

    return show


class Bars:
    """A progress bar for each activity. Implements ``DownloadProgress``; ``compiling`` is a ``CompileProgress``."""

    def __init__(self, still: bool = False) -> None:
        self._still = still
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._compiling: str | None = None

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """Show ``done_bytes`` of ``total_bytes`` of a download, or of the check of a file."""
        from rich.filesize import decimal

        from pellucid.weights.sources.source import CHECKING

        amount = decimal(done_bytes) + (f" of {decimal(total_bytes)}" if total_bytes else "")
        text = label if label.startswith(CHECKING) else f"fetching {label}"
        self._show(text, done_bytes, total_bytes, amount if done_bytes else "")

    def compiling(self, done: int, total: int, label: str) -> None:
        """Show ``done`` of ``total`` compiled kernels. ``label``, the next kernel, is not shown."""
        if self._compiling is None:
            from pellucid.kernels.core.library import can_cache

            self._compiling = "compiling kernels" + (", once for this machine" if can_cache() else "")
        self._show(self._compiling, done, total, f"{done} of {total}")

    answering, embedding = _counted("answering requests"), _counted("embedding texts")
    recording, connecting = _counted("recording activations", " rows"), _counted("computing edges", " nodes")

    def surveying(self, texts: int) -> None:
        """Show the number of texts that were counted."""
        self._show("counting tokens", texts, None, f"{texts:,} texts")

    def recording_shards(self, done: int, total: int) -> None:
        """Show ``done`` of ``total`` files of an activation dataset (0: the total is not known yet)."""
        self._show("recording activations", done, total or None, f"{done:,} of {total:,} shards" if total else "")

    def measuring(self, done: int, total: int, label: str) -> None:
        """Show ``done`` of ``total`` measurements. ``label`` names the next measurement."""
        self._show("measuring", done, total, label)

    def scoring(self, done: int, total: int, label: str) -> None:
        """Show ``done`` of ``total`` scored tokens; ``label`` is the result so far."""
        self._show("scoring", done, total, label)

    def simulating(self, label: str) -> None:
        """Show a running simulation: ``label``."""
        self._show("simulating", 0, None, label)

    def _show(self, text: str, done: int, total: int | None, amount: str) -> None:
        if not sys.stderr.isatty():
            if text not in self._tasks:
                self._tasks[text] = None
                print(text, file=sys.stderr)
            return
        if self._bar is None:
            self._bar = _bar(self._still)
            self._bar.start()
        if text not in self._tasks:
            self._tasks[text] = self._bar.add_task(text, total=total, amount=amount)
        self._bar.update(self._tasks[text], completed=done, total=total, amount=amount, refresh=self._still)

    def close(self) -> None:
        """Remove the bars."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(still: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    label, amount = TextColumn("{task.description}"), TextColumn("{task.fields[amount]}")
    columns = (label, BarColumn(bar_width=16), amount, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=not still)


def opened(model: str) -> Checkpoint:
    """Open the file of a model, with progress bars while it is downloaded. The weights are not read."""
    from pellucid.weights.open import open_checkpoint
    from pellucid.weights.store import resolve

    with progress() as bars:
        return open_checkpoint(resolve(model, progress=bars))


def plan(model: str, options: LoadOptions) -> Plan:
    """Build the plan of a model from the header of its file. No weights are loaded."""
    from functools import cache, partial

    from pellucid import pipeline
    from pellucid.loading import read_with_options
    from pellucid.plan.bind import layouts
    from pellucid.tokenize import load_tokenizer

    checkpoint = opened(model)
    read = read_with_options(checkpoint, options, cache(partial(load_tokenizer, checkpoint)))
    packed = layouts(checkpoint, read)
    return pipeline.build_plan(read.spec, packed, options.activation_bits, options.kv_cache)


def milliseconds(seconds: Mapping[str, float]) -> str:
    """The median, 95th and 99th percentile of times in seconds, as text in milliseconds."""
    return " ".join(f"{1e3 * seconds[name]:,.0f}" for name in ("p50", "p95", "p99"))


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    import json

    print(json.dumps(document, ensure_ascii=False, indent=2))


def print_facts(facts: Mapping[str, Any], file: TextIO | None = None) -> None:
    """Print a line for each fact: its name and its value."""
    width = max(map(len, facts))
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) else " ".join(value) if isinstance(value, list) else value
        print(f"{name:<{width}}  {one_line(str(text))}", file=file)


def table(*columns: str, gap: int = 2) -> Any:
    """A plain table. A column ``>name`` is aligned to the right; such a column and a column ``|name`` never wrap."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for column in columns:
        mark, name = (column[0], column[1:]) if column.startswith((">", "|")) else ("", column)
        justify: Any = "right" if mark == ">" else "left"
        grid.add_column(name, justify=justify, overflow="fold", no_wrap=bool(mark))
    return grid


def print_table(*columns: str, rows: Iterable[Sequence[str]], json: Any = False) -> None:
    """Print rows as a table with these columns, or the document ``json`` instead, unless it is False."""
    if json is not False:
        print_json(json)
        return
    grid = table(*columns)
    for row in rows:
        grid.add_row(*row)
    show(grid)


def columns() -> int:
    """Maximum width of a table: the terminal's width, or 200 in a pipe."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def show(renderable: Any) -> None:
    """Print a table, wrapped to the terminal, or to 200 columns in a pipe. Colours need a terminal with colours."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=None if sys.stdout.isatty() else columns(), highlight=False, markup=False, emoji=False)
    # Columns that cannot wrap are not cut off: the terminal wraps the lines.
    console.width = max(console.width, Measurement.get(console, console.options, renderable).minimum)
    with console.capture() as printed:
        console.print(renderable)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))
