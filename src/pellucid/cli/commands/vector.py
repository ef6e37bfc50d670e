"""pellucid vector MODEL OUT: make a control vector from pairs of prompts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import Loading, load
from pellucid.cli.output_file import OutputFile
from pellucid.errors import InvalidRequest


def command(
    model: common.Model,
    out: Annotated[
        Path, common.argument("OUT", "The file to write: .gguf (as llama.cpp reads it) or .safetensors.")
    ],
    positive: Annotated[
        str, common.text("FILE", "Prompts with the property that the vector adds, one in each line.")
    ],
    negative: Annotated[str, common.text("FILE", "Prompts without it, line by line the counterparts.")],
    method: Annotated[
        str,
        common.text("NAME", "mean: the mean of the differences; pca: their first principal direction."),
    ] = "mean",
    layers: Annotated[
        tuple[int, int] | None,
        typer.Option(help="First and last layer. Default: all except layer 0.", metavar="START END"),
    ] = None,
    *,
    loading: Loading,
) -> None:
    """Make a control vector: the direction from one kind of prompts to another.

    pellucid run --control-vector FILE:SCALE steers with it, and so does pellucid serve --vectors FOLDER.
    """
    from pellucid.trace.control_vector import ControlVector
    from pellucid.trace.vector_file import check_ending

    check_ending(out)
    if layers is not None and not 0 <= layers[0] <= layers[1]:
        raise InvalidRequest(
            f"--layers {layers[0]} {layers[1]}: must be a first and a last layer, such as 10 15"
        )
    output = OutputFile("out", out, [positive, negative])
    prompts = [_lines(file) for file in (positive, negative)]
    llm = load(model, loading, lambda inputs: [inputs.prompt(line) for lines in prompts for line in lines])
    if layers is not None and layers[1] >= len(llm.spec.blocks):
        raise InvalidRequest(
            f"--layers {layers[0]} {layers[1]}: the model's layers are 0 to {len(llm.spec.blocks) - 1}"
        )
    chosen = None if layers is None else range(layers[0], layers[1] + 1)
    kind = cast('Literal["mean", "pca"]', method)
    vector = ControlVector.contrast(llm, *prompts, method=kind, layers=chosen)
    with tempfile.TemporaryDirectory(dir=output.target.parent) as folder:
        complete = Path(folder) / out.name
        vector.save(complete)
        output.replace_by(complete)
    print(f"{len(vector.directions)} directions from {len(prompts[0]):,} pairs of prompts: {out}")


def _lines(file: str) -> list[str]:
    text = common.file_text(file, "give a file with a prompt in each line")
    return [line for line in text.splitlines() if line.strip()]


COMMAND = Command("vector", command)
