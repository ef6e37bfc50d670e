"""pellucid answer, classify, embed, fill, rerank, tag: the tasks of encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.cli.options import EncoderLoading, check_task, load
from pellucid.errors import InvalidRequest
from pellucid.util.checks import whole

if TYPE_CHECKING:
    from pellucid.engine.inputs import Inputs
    from pellucid.load_options import LoadOptions


@command("answer")
def answer_command(
    model: common.Model,
    question: str = common.argument("QUESTION", "The question.", ...),
    text: str = common.argument("TEXT", "The text, or @FILE for the text of a file.", ...),
    top: Any = common.count("Number of answers to show.", 1),
    longest: Any = common.count("Maximum number of tokens of an answer.", 15),
    unanswerable: bool = common.flag("--unanswerable", "The text may have no answer, which then is an answer too."),
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Find the part of a text that answers a question, with a model that has a question answering head."""
    given = common.text_or_file(text)
    llm = load(model, loading, lambda inputs: check_task(inputs, "answer"))
    answers = llm.answer(question, given, top=top, longest=longest, unanswerable=unanswerable)
    rows = []
    for one in answers:
        found = (f"{one.start}:{one.end}", common.beginning(one.text)) if one.end else ("", "no answer")
        rows.append((f"{one.score:.4f}", *found))
    document = json and {"question": question, "answers": common.fields_of(answers)}
    common.print_table(">score", ">characters", "answer", rows=rows, json=document)


@command("classify")
def classify_command(
    model: common.Model,
    texts: common.Texts,
    top: Any = common.count("Number of labels to show for each text.", 5),
    truncate: common.Truncate = False,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Score the labels of texts with a model that has a classification head."""
    count = whole("top", top, 1, 1 << 20)
    given = list(common.texts_or_lines(texts))
    llm = load(model, loading, lambda inputs: check_task(inputs, "classify"))
    found = llm.classify(given, truncate=truncate)
    rows = [
        ("" if number else common.beginning(text), label, f"{score:.4f}")
        for text, one in zip(given, found)
        for number, (label, score) in enumerate(one.ranked[:count])
    ]
    document = {"texts": [{"text": text, "scores": dict(one.ranked)} for text, one in zip(given, found)]}
    common.print_table("text", "label", ">score", rows=rows, json=json and document)


@command("fill")
def fill_command(
    model: common.Model,
    text: str = common.argument("TEXT", "A text with masks: 'Paris is the [MASK] of France.', or @FILE", ...),
    top: Any = common.count("Number of tokens to show for each mask.", 5),
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Show the most likely tokens at the masks of a text, from a masked language model."""
    given = common.text_or_file(text)
    llm = load(model, loading, lambda inputs: check_task(inputs, "fill"))
    masks = llm.fill(given, top)
    rows = [
        (str(number), repr(token.text), f"{token.probability:.4f}", common.beginning(token.filled))
        for number, tokens in enumerate(masks, 1)
        for token in tokens
    ]
    document = json and {"text": given, "masks": list(map(common.fields_of, masks))}
    common.print_table(">mask", "token", ">probability", "text", rows=rows, json=document)


@command("rerank")
def rerank_command(
    model: common.Model,
    query: Annotated[str, common.argument("QUERY", "The question or the words to search for.", ...)],
    texts: common.Texts,
    top: Any = common.count("Number of texts to show. Default: all."),
    truncate: common.Truncate = False,
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Sort texts by their relevance to a query. A cross-encoder scores pairs; a sentence encoder compares vectors."""
    from pellucid.encoders.ranking import PAIR_TASKS

    documents = list(common.texts_or_lines(texts))
    count = None if top is None else whole("top", top, 1, len(documents), "the number of texts")
    llm = load(model, loading, lambda inputs: check_task(inputs, *PAIR_TASKS))
    ranked = llm.rerank(query, documents, top=count, truncate=truncate)
    rows = [(f"{one.score:.4f}", common.beginning(one.text), str(one.index + 1)) for one in ranked]
    document = json and {"query": query, "ranked": common.fields_of(ranked)}
    common.print_table(">score", "text", ">", rows=rows, json=document)


@command("tag")
def tag_command(
    model: common.Model,
    text: str = common.argument("TEXT", "The text, or @FILE for the text of a file.", ...),
    grouping: str = common.text(
        "GROUPING",
        "none: a row for each token; simple: neighbouring tokens of an entity together; first, average, max: the "
        "tokens of a word have the label of the first, of the mean, or of the most certain token.",
        "simple",
    ),
    *,
    loading: EncoderLoading,
    json: common.Json = False,
) -> None:
    """Label the tokens of a text, such as named entities, with a model that has a token classification head."""
    given = common.text_or_file(text)
    llm = load(model, loading, lambda inputs: check_task(inputs, "tag"))
    tags = llm.tag(given, grouping)  # type: ignore[arg-type]  # checked by tag
    rows = [(one.label, f"{one.score:.4f}", f"{one.start}:{one.end}", common.beginning(one.text)) for one in tags]
    document = json and {"text": given, "tags": common.fields_of(tags)}
    common.print_table("label", ">score", ">characters", "text", rows=rows, json=document)


@command("embed")
def embed_command(
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

    dimensions = None if dimensions is None else whole("dimensions", dimensions, 1, 1 << 20)
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
    llm = load(model, loading, lambda inputs: _check_texts(inputs, prompt, texts, truncate))
    vectors = llm.embed(texts, prompt=prompt, dimensions=dimensions, truncate=truncate)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    cosines = vectors.astype(np.float64) @ vectors.T / np.outer(lengths, lengths)
    if json:
        common.print_json({"texts": texts, "vectors": vectors.tolist(), "cosines": cosines.round(6).tolist()})
        return
    numbers = [str(i + 1) for i in range(len(texts))]
    starts = [" ".join(f"{x:+.3f}" for x in vector[:3]) for vector in vectors]
    shown = [text if len(text) < 50 else text[:47] + "..." for text in texts]
    rows = [(number, text, f"{start} ...") for number, text, start in zip(numbers, shown, starts)]
    common.print_table(">", "text", f"|vector ({vectors.shape[1]})", rows=rows)
    if len(texts) > 1:
        print("\ncosine similarities")
        similar = [(number, *(f"{x:.4f}" for x in row)) for number, row in zip(numbers, cosines)]
        common.print_table(">", *(f">{number}" for number in numbers), rows=similar)


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
    from pellucid.cli.output_file import VectorFile
    from pellucid.encoders.tasks import embed, vector_width
    from pellucid.serve.batch_output import options_hash
    from pellucid.util.text_file import TextFile
    from pellucid.weights.manifest import model_hash

    source = TextFile(file, field)
    target = VectorFile(out, source)
    with target.locked(), common.progress() as bars:
        total = source.count()
        llm = load(model, loading, lambda inputs: _check_texts(inputs, prompt))
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


def _check_texts(inputs: Inputs, prompt: str, texts: Sequence[str] = (), truncate: bool = False) -> None:
    """Refuse a model that makes no sentence vectors, an unknown name of a prompt, and texts that do not fit."""
    check_task(inputs, "embed")
    inputs.prompt_of(prompt)
    if texts:
        inputs.sentences(texts, truncate, prompt)
