"""pellucid neighbours MODEL WORD...: the tokens with the nearest embeddings, and the similarity of words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

from pellucid.cli import common
from pellucid.cli.command import Command

if TYPE_CHECKING:
    from pellucid.model.spec import ModelSpec
    from pellucid.model.weight_map import Model
    from pellucid.tokenize import Tokenizer
    from pellucid.weights.checkpoint import Checkpoint


class _Opened(NamedTuple):
    """A model's file and tokenizer."""

    checkpoint: Checkpoint
    model: Model
    tokenizer: Tokenizer

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec


def command(
    model: common.Model,
    words: Annotated[
        list[str], common.argument("WORD...", "Words. A leading space is part of the word: ' king'.")
    ],
    n: Annotated[int, common.count("Neighbours to show of each word.")] = 10,
    head: Annotated[
        bool, common.flag("--head", "Compare rows of the output projection instead of embeddings.")
    ] = False,
    json: common.Json = False,
) -> None:
    """Show the tokens whose embeddings are nearest to a word's embedding. Only the model's embeddings are read.

    The embedding of a word with several tokens is the mean of the tokens' embeddings. For several words, the command
    also shows the cosines between the words, and their coordinates on a map (the first two principal components).
    """
    from pellucid.model.read import read_model
    from pellucid.tokenize import load_tokenizer
    from pellucid.trace.lenses.neighbours import neighbours, similarity, word_map

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
        table = common.table("cosine", "token", "id", right=("cosine", "id"), no_wrap=("token",))
        for text, token, cosine in tokens:
            table.add_row(f"{cosine:.3f}", common.visible(text), str(token))
        common.show(table)
        print()
    if len(words) > 1:
        names = [common.visible(word) for word in words]
        table = common.table("", *names, "x", "y", right=(*names, "x", "y"))
        for name, row, place in zip(names, cosines, places):
            table.add_row(name, *(f"{cosine:.2f}" for cosine in row), *(f"{x:+.2f}" for x in place))
        common.show(table)


COMMAND = Command("neighbours", command)
