"""pellucid eval perplexity|kl, verify-run: a model against a text, against another model, and against a receipt."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import structs

from pellucid.cli import common
from pellucid.cli.command import CommandGroup, command
from pellucid.cli.options import Loading, load
from pellucid.errors import ModelNotFound, brief

if TYPE_CHECKING:
    from pellucid.receipts.receipt import Receipt

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
    reference_options = structs.replace(loading, precise=True, activations=None, kv_cache=None, cap_context=True)
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


EVAL = CommandGroup(
    "eval",
    "Measure how well a model predicts a text (perplexity), or how much two models' predictions differ (kl).",
    {"perplexity": perplexity, "kl": kl},
)


def _read(file: str) -> str:
    if file == "-":
        return common.text_or_stdin(None, "no text")
    return common.file_text(file, "give a text file, or - for standard input")


@command("verify-run")
def verify_run_command(
    file: str = common.argument("FILE", "A receipt, or a server's answer with one receipt, as a JSON file.", ...),
    model: str | None = common.argument(
        "MODEL",
        "The model that replays the run, as in `pellucid run`. Default: the model on this machine with the name in "
        "the receipt.",
    ),
    signed_by: str | None = common.text("FILE", "A public key. The receipt must have a valid signature of this key."),
    ignore_signature: bool = common.flag(
        "--ignore-signature", "Replay the run without checking the receipt's signature."
    ),
    *,
    loading: Loading,
    json: common.Json = False,
) -> None:
    """Replay the run of a receipt, and compare every token and the bits of all logits.

    Prints "equal", or the first difference. The exit code is 0 if the runs are equal, and 1 if they differ.
    """
    from pellucid.receipt_check import check_seals, replay
    from pellucid.receipts.receipt import Receipt, public_key_in

    if signed_by is not None and ignore_signature:
        raise typer.BadParameter("--signed-by needs the signature: leave --ignore-signature out")
    receipt = Receipt.open(file)
    key = None if signed_by is None else public_key_in("signed_by", signed_by)
    found = check_seals(receipt, key, signature=not ignore_signature)
    if found is None:
        theirs = receipt.model
        options = structs.replace(
            loading,
            context=loading.context or theirs.context,
            precise=loading.precise or theirs.precise,
            activations=loading.activations or theirs.activations,
            kv_cache=loading.kv_cache or theirs.kv_cache,
            cap_context=True,  # another model is refused by its identity
        )
        with load(model or _model_of(receipt), options) as llm:
            with common.progress() as bars:
                llm.identity(bars)
            found = replay(llm, receipt)
    public_key = receipt.signature.public_key if found and receipt.signature and not ignore_signature else ""
    found = structs.replace(found, public_key=public_key)
    if json:
        common.print_json(structs.asdict(found))
    else:
        print(found.message + (f", signed by the key {public_key}" if public_key else ""))
    if not found:
        raise typer.Exit(1)


def _model_of(receipt: Receipt) -> str:
    """The path of the model on this machine with the name in a receipt.

    A receipt is not trusted, so its name is only compared: it is never a path, and nothing is downloaded.

    Raises:
        ModelNotFound: no model on this machine has the name.
    """
    from pellucid.weights.store import installed

    name = receipt.model.name
    for one in installed():
        if one.complete and name in (one.name, one.path.name, one.path.stem):
            return str(one.path)
    raise ModelNotFound(
        f"model {brief(name)} of the receipt is not on this machine: name it, pellucid verify-run FILE MODEL"
    )
