"""pellucid verify-run FILE [MODEL]: replays the run of a receipt, and compares tokens and the bits of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from msgspec.structs import asdict, replace

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import Loading, load
from pellucid.errors import ModelNotFound
from pellucid.errors.messages import brief

if TYPE_CHECKING:
    from pellucid.receipt_check import ReceiptCheck
    from pellucid.receipts.receipt import Receipt


def command(
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
    from pellucid.receipts.receipt import Receipt
    from pellucid.receipts.signature import public_key_in

    if signed_by is not None and ignore_signature:
        raise typer.BadParameter("--signed-by needs the signature: leave --ignore-signature out")
    receipt = Receipt.open(file)
    key = None if signed_by is None else public_key_in("signed_by", signed_by)
    found = check_seals(receipt, key, signature=not ignore_signature)
    if found is None:
        theirs = receipt.model
        options = replace(
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
    _print(replace(found, public_key=public_key), json)
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


def _print(found: ReceiptCheck, json: bool) -> None:
    if json:
        document: dict[str, Any] = asdict(found)
        common.print_json(document)
        return
    signed = f", signed by the key {found.public_key}" if found.public_key else ""
    print(found.message + signed)


COMMAND = Command("verify-run", command)
