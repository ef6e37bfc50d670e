"""pellucid eval perplexity|kl MODEL FILE: perplexity of a text, and divergence from another model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from msgspec.structs import replace

from pellucid.cli import common
from pellucid.cli.command import CommandGroup
from pellucid.cli.loading import Loading, load

File = Annotated[str, common.argument("FILE", "A text file in UTF-8; - for standard input.", ...)]
Window = Annotated[int | None, common.count("Tokens of a window. Default: 512, at most the context.", ...)]
Stride = Annotated[
    int | None, common.count("Tokens between the beginnings of adjacent windows. Default: half a window.", ...)
]


def perplexity(
    model: common.Model,
    file: File,
    window: Window = None,
    stride: Stride = None,
    *,
    loading: Loading,
    json: common.Json = False,
) -> None:
    """Measure the perplexity of a text.

    Perplexity is exp of the mean negative log-probability of the tokens, each given the tokens before it in its window.
    """
    from pellucid import evaluate

    text = _read(file)
    llm = load(model, loading, lambda inputs: inputs.corpus(text))
    with common.progress() as bars:
        result = evaluate.perplexity(llm, text, window, stride, bars.scoring)
    numbers = {"perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte, **asdict(result)}
    if json:
        common.print_json(numbers)
        return
    spread = result.perplexity * (result.nats.error or 0)
    print(f"perplexity {result.perplexity:.4f} ± {spread:.4f}, {result.bits_per_byte:.4f} bits per byte")
    print(f"{result.tokens:,} tokens scored, windows of {result.window:,}, stride {result.stride:,}")


def kl(
    model: common.Model,
    file: File,
    against: str = common.text("MODEL", "The reference model.", ...),
    window: Window = None,
    stride: Stride = None,
    *,
    loading: Loading,
    json: common.Json = False,
) -> None:
    """Measure the Kullback-Leibler divergence of a model's next-token distributions from another model's, on a text.

    The other model runs with --precise, exactly as its file defines it. --kv-cache applies to MODEL only.
    """
    from pellucid import evaluate

    text = _read(file)
    llm = load(model, loading, lambda inputs: inputs.corpus(text))
    reference_options = replace(loading, precise=True, activations=None, kv_cache=None, cap_context=True)
    other = load(against, reference_options, lambda inputs: inputs.corpus(text))
    with common.progress() as bars:
        result = evaluate.divergence(llm, other, text, window, stride, bars.scoring)
    if json:
        common.print_json(asdict(result))
        return
    print(f"KL divergence {result.nats.mean:.4g} ± {result.nats.error or 0:.2g} nats")
    print(f"median {result.median:.3g}, 99 % below {result.p99:.3g}, maximum {result.most:.3g}")
    print(f"the same most likely token {100 * result.same_top:.2f} % of the time")
    print(f"{result.tokens:,} tokens, windows of {result.window:,}, stride {result.stride:,}")


COMMAND = CommandGroup(
    "eval",
    "Measure how well a model predicts a text (perplexity), or how much two models' predictions differ (kl).",
    {"perplexity": perplexity, "kl": kl},
)


def _read(file: str) -> str:
    if file == "-":
        return common.text_or_stdin(None, "no text")
    return common.file_text(file, "give a text file, or - for standard input")
