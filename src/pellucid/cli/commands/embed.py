"""pellucid embed MODEL TEXT...: sentence vectors and their cosine similarities; or the vectors of a file of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import EncoderLoading, check_task, load
from pellucid.errors import InvalidRequest
from pellucid.util.checks import whole

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs
    from pellucid.load_options import LoadOptions


def command(
    model: common.Model,
    texts: list[str] | None = common.argument("TEXT", "Sentences or short texts."),
    file: Path | None = common.text(
        "FILE",
        "The texts of a file: .txt (a text in each line), .jsonl, .csv or .parquet; or of the .txt and .md files "
        "of a folder. Needs --out.",
    ),
    field: str | None = common.text("NAME", "The field or column of --file with the texts. Default: text."),
    out: Path | None = common.text(
        "FILE",
        "The file for the vectors of --file: .npy (an array), .jsonl or .parquet (texts and vectors). An "
        "interrupted run continues.",
    ),
    prompt: str = common.text(
        "PROMPT", "The name of a prompt of the model, such as query, or a text before each text.", ""
    ),
    dimensions: Any = common.count("Cut the vectors to their first N components."),
    truncate: common.Truncate = False,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Compute sentence vectors and their cosine similarities, or the vectors of all texts of a file."""
    import numpy as np

    if dimensions is not None:
        dimensions = whole("dimensions", dimensions, 1, 1 << 20)
    if file is not None and out is not None and not texts:
        total, width = _embed_file(model, loading, file, field, out, prompt, dimensions, truncate)
        if json:
            common.print_json({"texts": total, "dimensions": width, "file": str(out)})
        else:
            print(f"{total:,} vectors of {width:,} components: {out}")
        return
    if file is not None or out is not None or field is not None:
        raise InvalidRequest("--file FILE and --out FILE belong together, without TEXT: give both, or only texts")
    if not texts:
        before = ", which --prompt is put before" if prompt else ""
        raise InvalidRequest(f"embed needs texts{before}, or --file FILE and --out FILE. See pellucid embed --help.")
    llm = load(model, loading, lambda inputs: _check(inputs, prompt, texts, truncate))
    vectors = llm.embed(texts, prompt=prompt, dimensions=dimensions, truncate=truncate)
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


def _embed_file(
    model: str,
    loading: LoadOptions,
    file: Path,
    field: str | None,
    out: Path,
    prompt: str,
    dimensions: int | None,
    truncate: bool,
) -> tuple[int, int]:
    """Write the vectors of a file of texts. Returns the number of vectors and of their components."""
    from pellucid.cli.vector_file import VectorFile
    from pellucid.encoders.tasks import embed, vector_width
    from pellucid.serve.batch_output import options_hash
    from pellucid.util.text_file import TextFile
    from pellucid.weights.model_hash import model_hash

    source = TextFile(file, field)
    target = VectorFile(out, source)
    with target.locked(), common.progress() as bars:
        total = source.count()
        llm = load(model, loading, lambda inputs: _check(inputs, prompt))
        width = vector_width(llm, dimensions)
        run = {
            "model": model_hash(llm.checkpoint, bars),
            "file of texts": source.sha256(),
            "--field": source.field,
            "--prompt": llm.inputs.prompt_of(prompt),
            "--dimensions": width,
            "--truncate": truncate,
            "option of loading": options_hash(loading),
        }
        with target.opened(run, total, width):
            bars.embedding(target.done, total)
            for piece in source.encoded(llm.inputs, target.done, prompt, truncate):
                target.append(embed(llm, piece, dimensions))
                bars.embedding(target.done, total)
        target.finish()
    return total, width


def _check(inputs: Inputs, prompt: str, texts: Sequence[str] = (), truncate: bool = False) -> None:
    """Refuse a model that makes no sentence vectors, an unknown name of a prompt, and texts that do not fit."""
    check_task(inputs, "embed")
    inputs.prompt_of(prompt)
    if texts:
        inputs.sentences(texts, truncate, prompt)


COMMAND = Command("embed", command)
