"""pellucid verify [MODEL ...]: checks that stored models are unchanged since they were pulled."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from msgspec.structs import asdict

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.errors import PellucidError
from pellucid.errors.messages import one_line

if TYPE_CHECKING:
    from pellucid.weights.store import Verified


def command(
    models: Annotated[
        list[str] | None,
        common.argument("MODEL...", "Names that `pellucid list` shows. Default: all models on this machine."),
    ] = None,
    json: common.Json = False,
) -> None:
    """Check by hash that stored models are unchanged since they were pulled. `pellucid pull` repairs damaged models."""
    from pellucid.weights.store import installed, verify

    verified: list[Verified] = []
    failures: list[PellucidError] = []
    with common.progress() as bars:
        for name in models or [model.name for model in installed()]:
            try:
                verified.append(verify(name, progress=bars))
            except PellucidError as error:  # the others are still verified
                failures.append(error)
                continue
            if not json:
                bars.close()
                print(_line(verified[-1]))
    if json:
        common.print_json([_document(model) for model in verified])
    for model in verified:
        try:
            model.raise_if_damaged()
        except PellucidError as error:
            failures.append(error)
    for failure in failures[:-1]:
        print(f"pellucid: {failure}", file=sys.stderr)
    if failures:
        raise failures[-1]


def _line(model: Verified) -> str:
    if model.ok:
        size = sum(file.bytes for file in model.files)
        return f"{model.name}  ok, {size / 1e6:.1f} MB"
    damaged = [f"{one_line(file.name)} {file.problem}" for file in model.files if file.problem]
    return f"{model.name}  damaged: {'; '.join(damaged)}"


def _document(model: Verified) -> dict[str, object]:
    return {
        "name": model.name,
        "path": str(model.path),
        "ok": model.ok,
        "files": list(map(asdict, model.files)),
    }


COMMAND = Command("verify", command)
