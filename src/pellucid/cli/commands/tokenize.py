"""pellucid tokenize MODEL TEXT: the tokens of a text; --explain shows the stages of tokenization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.errors import one_line

if TYPE_CHECKING:
    from pellucid.tokenize.explain import Explanation, PreToken

COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")
CONTROL = "bold reverse"


@command("tokenize")
def tokenize_command(
    model: str = common.argument(
        "MODEL",
        "A model, as in `pellucid run`, or a tokenizer: a folder or file (tokenizer.json, *.model, *.tiktoken).",
        ...,
    ),
    text: str | None = common.argument("TEXT", "The text, or @FILE. If it is - or missing: standard input."),
    explain: bool = common.flag(
        "--explain", "Show every stage: normalised text, pre-tokens, then merges, attempted matches or the lattice."
    ),
    parse_special: bool = common.flag("--parse-special", "Recognise control tokens, such as <|im_end|>, in the text."),
    json: common.Json = False,
) -> None:
    """Show the tokens of a text: their ids, their bytes and their characters. No weights are loaded."""
    from pellucid.tokenize import load_tokenizer
    from pellucid.weights.store import resolve

    content = common.text_or_stdin(text, "no text")
    with common.progress() as bars:
        tokenizer = load_tokenizer(resolve(model, progress=bars))
    explanation = tokenizer.explain(content, parse_special=parse_special)
    if json:
        document = explanation.as_dict()
        common.print_json(document if explain else {"text": document["text"], "tokens": document["tokens"]})
        return
    _coloured(explanation)
    rows = []
    for at, token in enumerate(explanation.tokens):
        where = "" if token.special else f"{token.start}-{token.end}"
        rows.append((str(at), str(token.id), one_line(token.piece), token.bytes.hex(" "), where))
    common.print_table(">", ">id", "piece", "bytes", "|characters", rows=rows)
    if explain:
        _stages(explanation)


def _coloured(explanation: Explanation) -> None:
    """Print the text with a colour for each token, and bars between tokens for terminals without colours."""
    from rich.text import Text

    line = Text()
    for at, token in enumerate(explanation.tokens):
        if at:
            line.append("|", "dim")
        shown = one_line(token.piece) if token.special else common.visible(explanation.text[token.start : token.end])
        line.append(shown, CONTROL if token.special else COLOURS[at % len(COLOURS)])
    common.show(line)
    print()


def _stages(explanation: Explanation) -> None:
    for name, parts in explanation.stages.items():
        print(f"\n{name}: {one_line(', then '.join(parts) or 'nothing')}", end="")
    print(f"\n\nnormalised  {common.visible(explanation.normalized)}")
    for pre_token in explanation.pre_tokens:
        print(f"\n{common.visible(pre_token.text)}  {pre_token.start}-{pre_token.end}")
        for line in _explanation_lines(pre_token):
            print(f"  {line}")


FORMATTED = {"whole", "symbols", "merges", "tries", "lattice", "best", "score"}
"""Parts of an explanation that have their own format. Any other part is printed as its name and its words."""


def _explanation_lines(pre_token: PreToken) -> Iterator[str]:
    """One line for each step in which the tokenizer's model stage (BPE, WordPiece or Unigram) splits a pre-token."""
    if pre_token.how is None:
        yield "an added token, found before anything else"
        return
    how = pre_token.how
    if how.get("whole"):
        yield "in the vocabulary as a whole"
    if "symbols" in how:
        yield f"symbols {' '.join(map(common.visible, how['symbols']))}"
    for merge in how.get("merges", ()):
        left, right, merged = (common.visible(merge[part]) for part in ("left", "right", "merged"))
        value = _number(merge["rank"]) if "rank" in merge else f"score {_number(merge['score'])}"
        yield f"{value}  {left} + {right} = {merged}"
    for attempt in how.get("tries", ()):
        missed = attempt["tried"] if attempt["found"] is None else attempt["tried"][:-1]
        failed = f", not {' '.join(map(common.visible, missed))}" if missed else ""
        yield f"at {attempt['at']}: {common.visible(attempt['found'] or 'nothing')}{failed}"
    yield from _lattice(how)
    for key, value in how.items():
        if key == "unknown":
            yield f"unknown: {one_line(value)}"
        elif key not in FORMATTED:
            several = isinstance(value, (list, tuple))
            words = " ".join(common.visible(str(item)) for item in value) if several else one_line(str(value))
            yield f"{one_line(key)} {words}"


def _lattice(how: Mapping[str, Any]) -> Iterator[str]:
    for edge in how.get("lattice", ()):
        yield f"at {edge['at']}  {_number(edge['score'])}  {common.visible(edge['piece'])}"
    if "best" in how:
        yield f"best {_number(how['score'])}  {' '.join(map(common.visible, how['best']))}"


def _number(value: float) -> str:
    return f"{value:>9,}" if isinstance(value, int) else f"{value:>9.4f}"
