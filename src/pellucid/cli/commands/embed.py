"""pellucid embed MODEL TEXT...: sentence vectors and their cosine similarities."""

from __future__ import annotations

from typing import Annotated

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import EncoderLoading, load


def command(
    model: common.Model,
    texts: Annotated[list[str], common.argument("TEXT", "Sentences or short texts.")],
    truncate: Annotated[
        bool, common.flag("--truncate", "Cut texts that are longer than the context, instead of failing.")
    ] = False,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Compute sentence vectors and their cosine similarities."""
    import numpy as np

    llm = load(model, loading, lambda inputs: inputs.sentences(texts, truncate))
    vectors = llm.embed(texts, truncate=truncate)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    cosines = vectors.astype(np.float64) @ vectors.T / np.outer(lengths, lengths)
    if json:
        common.print_json({"texts": texts, "vectors": vectors.tolist(), "cosines": cosines.round(6).tolist()})
        return
    numbers = [str(i + 1) for i in range(len(texts))]
    sentences = common.table(
        "", "text", f"vector ({vectors.shape[1]})", right=("",), no_wrap=(f"vector ({vectors.shape[1]})",)
    )
    for number, text, vector in zip(numbers, texts, vectors):
        start = " ".join(f"{x:+.3f}" for x in vector[:3])
        sentences.add_row(number, text if len(text) < 50 else text[:47] + "...", f"{start} ...")
    common.show(sentences)
    if len(texts) > 1:
        similar = common.table("", *numbers, right=("", *numbers))
        for number, row in zip(numbers, cosines):
            similar.add_row(number, *(f"{x:.4f}" for x in row))
        print("\ncosine similarities")
        common.show(similar)


COMMAND = Command("embed", command)
