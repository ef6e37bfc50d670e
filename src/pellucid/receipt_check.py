"""Verifies a receipt: replays its run, and compares the tokens and the hash of the logits of each step."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from pellucid.engine.engine import Engine
from pellucid.engine.inputs import Inputs
from pellucid.engine.job import SchedulingOptions
from pellucid.engine.local_request import LocalRequest
from pellucid.engine.output import TokenOutput
from pellucid.engine.request import RequestOptions
from pellucid.errors import InvalidRequest, brief
from pellucid.receipts.issuer import PELLUCID_VERSION, edit_records, options_of
from pellucid.receipts.receipt import LINK, EditRecord, ModelIdentity, Receipt, end_of, link, public_key_in, text_hash
from pellucid.sample.options import Options
from pellucid.tokenize import Tokenizer
from pellucid.trace.edits import Edit, listed
from pellucid.trace.trace import Trace
from pellucid.tracing import Tracing


class ReplayingModel(Protocol):
    engine: Engine
    inputs: Inputs
    tracing: Tracing
    scheduling: SchedulingOptions

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def identity(self) -> Any: ...


class ReceiptCheck(Struct, frozen=True):
    """The result of a verification. ``tokens`` is the number of tokens whose logits have equal bits.

    If the runs are not ``equal``, ``part`` is the first part that differs: "header", "signature", "weights",
    "tokenizer", "plan", "token", "logits", "end" or "text", and ``message`` describes the difference in one line.
    ``public_key`` is the key of a valid signature (hexadecimal), "" if the receipt is not signed.
    """

    equal: bool
    tokens: int
    part: str
    message: str
    public_key: str = ""

    def __bool__(self) -> bool:
        """True if the runs are equal."""
        return self.equal


def verify_receipt(
    model: ReplayingModel,
    receipt: Receipt | Mapping[str, Any],
    edits: Sequence[Edit] = (),
    signed_by: str | Path | None = None,
) -> ReceiptCheck:
    read = receipt if isinstance(receipt, Receipt) else Receipt.of(receipt)
    wanted = None if signed_by is None else public_key_in("signed_by", signed_by)
    found = check_seals(read, wanted)  # a difference is false, too
    if found is None:
        found = replay(model, read, edits)
    return replace(found, public_key=read.signature.public_key) if found and read.signature else found


def check_seals(receipt: Receipt, public_key: str | None = None, *, signature: bool = True) -> ReceiptCheck | None:
    """Check a receipt's header and signature, without a model. Returns a difference, or None.

    The signature must be of ``public_key``, if it is given. With ``signature`` off, the signature is not checked.
    Raises InvalidRequest if the receipt is signed, and cryptography is not installed.
    """
    if not receipt.has_own_header:
        return _different("header", 0, "the model or the request was changed after the receipt was issued")
    if public_key is not None and receipt.signature is None:
        return _different("signature", 0, "the receipt is not signed")
    if receipt.signature is None or not signature:
        return None
    if not receipt.has_valid_signature:
        return _different("signature", 0, "the signature does not belong to the run")
    if public_key is not None and receipt.signature.public_key != public_key:
        return _different("signature", 0, f"the receipt is signed by the key {receipt.signature.public_key}")
    return None


def replay(model: ReplayingModel, receipt: Receipt, edits: Sequence[Edit] = ()) -> ReceiptCheck:
    """Compare the model's identity with the receipt's, and replay the run. Arguments and errors: ``verify_receipt``."""
    other = _other_model(receipt, model.identity())
    if other is not None:
        return other
    request = _request(model, receipt, edits)
    with closing(_outputs(request)) as outputs:
        return _compared(request, outputs, receipt)


def _outputs(request: LocalRequest) -> Generator[TokenOutput, None, None]:
    yield from request


def _compared(request: LocalRequest, outputs: Iterator[TokenOutput], receipt: Receipt) -> ReceiptCheck:
    last, links, wanted = receipt.header, receipt.links, receipt.tokens
    output: TokenOutput | None = None
    for at, token in enumerate(wanted):
        output = next(outputs, None)
        if output is None:
            why = f"the replay ends ({request.outputs[0].finish_reason}) where the receipt has token {token}"
            return _different_run(receipt, "end", at, why)
        if output.id != token:
            why = f"the replay generates token {output.id}, the receipt has {token}"
            return _different_run(receipt, "token", at, why)
        assert output.digest is not None
        last = link(last, token, output.digest)
        if last[:LINK] != links[LINK * (at + 1) : LINK * (at + 2)]:
            return _different_run(receipt, "logits", at, "the logits, or the link of the receipt, differ")
    assert output is not None
    one, count = request.outputs[0], len(wanted)
    text = "".join(one.texts)
    reason, stop = output.finish_reason, output.stop_reason
    if receipt.finish_reason == "time" and reason is None and "max_time" in receipt.request.options:
        # The replay has no time limit, so that it continues. The limit ended the run after the same token.
        text, reason, stop = text + output.held, "time", None
    if reason is None:
        return _different_run(receipt, "end", count, "the replay continues where the receipt ends")
    if (reason, stop) != (receipt.finish_reason, receipt.stop_reason):
        why = f"the replay ends with {brief(reason)} ({brief(stop)}), the receipt with {brief(receipt.finish_reason)}"
        return _different_run(receipt, "end", count, f"{why} ({brief(receipt.stop_reason)})")
    if receipt.text != text_hash(text):
        return _different_run(receipt, "text", count, "the text of the replay is another one")
    if receipt.end != end_of(last, reason, stop, receipt.text):
        return _different_run(receipt, "end", count, "the last hash differs")
    return ReceiptCheck(True, count, "", f"equal: {count:,} token{'s' * (count != 1)}")


def _different(part: str, at: int, why: str) -> ReceiptCheck:
    return ReceiptCheck(False, at, part, f"differs in the {part}: {why}")


def _different_run(receipt: Receipt, part: str, at: int, why: str) -> ReceiptCheck:
    """A difference at a token. Names the versions if they differ, because a minor version may change bits."""
    versions, theirs = "", receipt.model.pellucid
    if theirs != PELLUCID_VERSION:
        versions = f" (the receipt is of Pellucid {brief(theirs)}, this is {PELLUCID_VERSION})"
    where = f"at token {at}" if part in ("token", "logits") else f"after {at:,} tokens"
    return ReceiptCheck(False, at, part, f"differs {where}: {why}{versions}")


def _other_model(receipt: Receipt, ours: ModelIdentity) -> ReceiptCheck | None:
    """The first part of the model's identity that differs; None if the model is the receipt's."""
    theirs = receipt.model
    for part in ("weights", "tokenizer", "plan"):
        if (own := getattr(theirs, part)) == (found := getattr(ours, part)):
            continue
        why = f"SHA-256 {own[:16]}… in the receipt, {found[:16]}… in this model"
        if part == "plan":
            options = [
                f"{name}={getattr(theirs, name)}, this model {getattr(ours, name)}"
                for name in ("precise", "activations", "kv_cache", "context")
                if getattr(theirs, name) != getattr(ours, name)
            ]
            why = f"loaded with {'; '.join(options)}" if options else f"{why}, Pellucid {brief(theirs.pellucid)}"
        return _different(part, 0, why)
    return None


def _request(model: ReplayingModel, receipt: Receipt, edits: Sequence[Edit]) -> LocalRequest:
    asked = receipt.request
    seed = {} if asked.seed is None else {"seed": int(asked.seed)}
    own = {**options_of(asked.options), **seed, "max_new_tokens": asked.max_new_tokens}
    options = Options.of(**own, receipt=True)
    chain = options.chain().with_seeds(asked.sequence + 1)[asked.sequence]
    if chain.greedy is not (asked.seed is None):
        raise InvalidRequest("receipt: the seed does not fit the options: the receipt is damaged")
    watching = None
    if found := _edits(asked.edits, edits):
        watching = Trace(model.tracing.points, (), piece=model.tokenizer.piece).watching(found)
    request = LocalRequest(
        model.engine,
        model.inputs,
        asked.prompt,
        RequestOptions(options, model.scheduling, watching),
        [chain],
        expected=receipt.tokens,
    )
    if request.limit != asked.max_new_tokens:
        needed = len(model.inputs.decoder_prompt(asked.prompt)) + asked.max_new_tokens
        raise InvalidRequest(
            f"receipt: the run needs a context of {needed:,} tokens, and this model has {model.inputs.context:,}: load "
            f"it with context={needed}"
        )
    return request


def _edits(records: Sequence[EditRecord], given: Sequence[Edit]) -> list[Edit]:
    """The edits of a receipt: the ``given`` edits if there are any. Raises InvalidRequest."""
    if given:
        if edit_records(listed(given)) != list(records):
            raise InvalidRequest("edits: are not the edits of the receipt: give the edits of the request")
        return list(given)
    if any(record.values for record in records):
        raise InvalidRequest(
            "receipt: the request had edits with arrays, and a receipt has only their hashes: use "
            "llm.verify_receipt(receipt, edits=[...])"
        )
    return [
        Edit(record.where, _number(record.factor), None if record.value is None else _number(record.value))
        for record in records
    ]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"receipt: an edit has {brief(text)}: must be a number") from None
