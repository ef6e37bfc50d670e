"""pellucid neighbours MODEL WORD...: the nearest embeddings. pellucid vector MODEL OUT: makes a control vector."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import typer

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.cli.options import Loading, load
from pellucid.cli.output_file import OutputFile
from pellucid.errors import InvalidRequest

if TYPE_CHECKING:
    from pellucid.model.spec import ModelSpec
    from pellucid.model.weight_map import Model
    from pellucid.tokenize import Tokenizer
    from pellucid.weights.checkpoint import Checkpoint


class _Opened(NamedTuple):
    checkpoint: Checkpoint
    model: Model
    tokenizer: Tokenizer

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec


@command("neighbours")
def neighbours_command(
    model: common.Model,
    words: list[str] = common.argument("WORD...", "Words. A leading space is part of the word: ' king'.", ...),
    n: int = common.count("Neighbours to show of each word.", 10),
    head: bool = common.flag("--head", "Compare rows of the output projection instead of embeddings."),
    json: common.Json = False,
) -> None:
    """Show the tokens whose embeddings are nearest to a word's embedding. Only the model's embeddings are read.

    The embedding of a word with several tokens is the mean of the tokens' embeddings. For several words, the command
    also shows the cosines between the words, and their coordinates on a map (the first two principal components).
    """
    from pellucid.model.read import read_model
    from pellucid.tokenize import load_tokenizer
    from pellucid.trace.lenses.comparison import neighbours, similarity, word_map

    checkpoint = common.opened(model)
    opened = _Opened(checkpoint, read_model(checkpoint), load_tokenizer(checkpoint))
    near = {word: neighbours(opened, word, n, head=head) for word in words}
    cosines, places = similarity(opened, words), word_map(opened, words)
    if json:
        common.print_json(
            {
                "neighbours": {
                    word: [{"text": text, "id": token, "cosine": cosine} for text, token, cosine in tokens]
                    for word, tokens in near.items()
                },
                "similarity": cosines.tolist(),
                "map": places.tolist(),
            }
        )
        return
    for word, tokens in near.items():
        print(common.visible(word))
        rows = [(f"{cosine:.3f}", common.visible(text), str(token)) for text, token, cosine in tokens]
        common.print_table(">cosine", "|token", ">id", rows=rows)
        print()
    if len(words) > 1:
        names = [common.visible(word) for word in words]
        similar = [
            (name, *(f"{cosine:.2f}" for cosine in row), *(f"{x:+.2f}" for x in place))
            for name, row, place in zip(names, cosines, places)
        ]
        common.print_table("", *(f">{name}" for name in names), ">x", ">y", rows=similar)


@command("vector")
def vector_command(
    model: common.Model,
    out: Path = common.argument("OUT", "The file to write: .gguf (as llama.cpp reads it) or .safetensors.", ...),
    positive: str = common.text("FILE", "Prompts with the property that the vector adds, one in each line.", ...),
    negative: str = common.text("FILE", "Prompts without it, line by line the counterparts.", ...),
    method: str = common.text(
        "NAME", "mean: the mean of the differences; pca: their first principal direction.", "mean"
    ),
    layers: tuple[int, int] | None = typer.Option(
        None, help="First and last layer. Default: all except layer 0.", metavar="START END"
    ),
    *,
    loading: Loading,
) -> None:
    """Make a control vector: the direction from one kind of prompts to another.

    pellucid run --control-vector FILE:SCALE steers with it, and so does pellucid serve --vectors FOLDER.
    """
    from pellucid.trace.control_vector import ControlVector
    from pellucid.trace.linear_probe import check_ending

    check_ending(out)
    if layers is not None and not 0 <= layers[0] <= layers[1]:
        raise InvalidRequest(f"--layers {layers[0]} {layers[1]}: must be a first and a last layer, such as 10 15")
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
