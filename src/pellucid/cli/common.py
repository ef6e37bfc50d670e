"""What several commands share: their options, progress bars, loading."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pellucid.llm import LLM

Model = Annotated[
    str,
    typer.Argument(
        help="A name of the catalogue, a path, hf:org/repo[/file], or pypi:NAME/path.", show_default=False
    ),
]
Threads = Annotated[int | None, typer.Option(help="Threads; one for each physical core by default.")]
Context = Annotated[
    int | None, typer.Option(help="Tokens that prompt and answer may have; the model's by default.")
]
ActivationBits = Annotated[int, typer.Option(help="16 is exact to rounding; 8 is faster on long prompts.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy; higher is more varied.")]
TopK = Annotated[int, typer.Option(help="Only the k most likely tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Only the likeliest tokens that sum to p; 1 is off.")]
Seed = Annotated[int | None, typer.Option(help="For the random numbers; one is drawn by default.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the text before this string; may be given again.")]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="Tokens to make at most; what the context holds by default.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@contextlib.contextmanager
def progress() -> Iterator[Bars]:
    """Progress bars on standard error, gone when done; plain lines where that is no terminal."""
    bars = Bars()
    try:
        yield bars
    finally:
        bars.close()


class Bars:
    """A bar for what is going on. Satisfies the download's ``Progress``; ``compiling`` is the kernels'."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: set[str] = set()

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """``done_bytes`` of ``total_bytes`` of a download are there."""
        self._show(label, f"fetching {label}", done_bytes, total_bytes, in_bytes=True)

    def compiling(self, done: int, total: int, label: str) -> None:
        """``done`` of ``total`` kernels are compiled; ``label`` is next."""
        text = f"compiling {total} kernels, once for this machine"
        self._show("kernels", f"{text}: {label}" if label else text, done, total, in_bytes=False, plain=text)

    def _show(
        self, key: str, text: str, done: int, total: int | None, *, in_bytes: bool, plain: str | None = None
    ) -> None:
        if not sys.stderr.isatty():
            if key not in self._said:
                self._said.add(key)
                print(plain or text, file=sys.stderr)
            return
        if self._bar is None:
            self._bar = _bar()
            self._bar.start()
        if key not in self._tasks:
            self._tasks[key] = self._bar.add_task(text, total=total, amount="")
        amount = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if in_bytes and total else f"{done} of {total}"
        self._bar.update(self._tasks[key], description=text, completed=done, total=total, amount=amount)

    def close(self) -> None:
        """Take the bars away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def load(
    model: str, threads: int | None = None, context: int | None = None, activation_bits: int = 16
) -> LLM:
    """Load a model with progress bars."""
    from pellucid.llm import load

    with progress() as bars:
        return load(
            model,
            threads=threads,
            context=context,
            activation_bits=activation_bits,
            progress=bars,
            compiling=bars.compiling,
        )


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    import json

    print(json.dumps(document, ensure_ascii=False, indent=2))


def table(*columns: str, right: tuple[str, ...] = ()) -> Any:
    """A plain table; the columns named in ``right`` are numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def show(renderable: Any) -> None:
    """Print a table: as wide as the terminal, or as it needs to be in a pipe. No colours where none are wanted."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(renderable)
