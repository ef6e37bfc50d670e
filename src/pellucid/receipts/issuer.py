"""Makes the receipts of a request's answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from pellucid.errors import InvalidRequest, KernelError
from pellucid.errors.messages import brief
from pellucid.receipts.edit_record import EditLike, edit_records
from pellucid.receipts.receipt import (
    EditRecord,
    ModelIdentity,
    Receipt,
    ReceiptRequest,
    canonical,
    issued,
)
from pellucid.receipts.signature import Signer
from pellucid.sample.chain import SEED_BITS, Chain
from pellucid.sample.options import Options
from pellucid.sample.step import options_of as options_of_step

WITHOUT_EFFECT = frozenset(
    {
        *("receipt", "watch", "logprobs", "prompt_logprobs", "logprobs_of", "prompt_lookup", "draft"),
        *("seed", "max_new_tokens"),  # separate fields of a receipt
    }
)
"""Options that are not among the options of a receipt: the tokens do not depend on them."""


class ReceiptIssuer:
    """Makes the receipts of the answers to one request with the given ``options`` and ``edits``.

    ``identity`` is the model's identity; a request on a cluster gets it from the replica (`identify`). Without a
    ``signer``, receipts are not signed.

    Raises:
        InvalidRequest: an option or an edit is a function or another object, which a receipt cannot hold.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        edits: Sequence[EditLike] = (),
        identity: ModelIdentity | None = None,
        signer: Signer | None = None,
    ) -> None:
        self._options = {
            name: _plain(name, value)
            for name, value in options.items()
            if name not in WITHOUT_EFFECT and value is not None
        }
        self._edits: list[EditRecord] = edit_records(edits)
        self.identity, self._signer = identity, signer

    def identify(self, identity: ModelIdentity) -> None:
        """Set the identity of the model that runs the request. Raises KernelError if another model began it."""
        if self.identity not in (None, identity):
            raise KernelError("receipt: the replicas of the model have different weights or versions")
        self.identity = identity

    def issue(
        self,
        prompt: Sequence[int],
        limit: int,
        chain: Chain,
        run: Sequence[tuple[int, bytes]],
        ended: tuple[str | None, int | str | None],
        text: str,
    ) -> Receipt | None:
        """The receipt of a sequence; None while it has not ended.

        ``run`` has each token with the digest of its logits, ``limit`` is the maximum number of tokens, ``ended`` the
        finish reason and the stop reason.
        """
        finish_reason, stop_reason = ended
        if finish_reason not in ("stop", "length", "time") or self.identity is None:
            return None
        request = ReceiptRequest(
            list(prompt),
            {**_defaults(chain), **self._options},
            limit,
            None if chain.greedy else str(chain.seed & ((1 << SEED_BITS) - 1)),
            chain.seed >> SEED_BITS,
            self._edits,
        )
        draft = Receipt(
            version=1,
            model=self.identity,
            request=request,
            tokens=[],
            finish_reason=finish_reason,  # type: ignore[arg-type]  # checked above
            stop_reason=stop_reason,
            text="",
            links=b"",
            end="",
        )
        return issued(draft, run, text, self._signer)


STOPPING = "a probe may end the text"
"""A reason to refuse a receipt."""


def refuse_receipt(options: Options, why: str) -> None:
    """Refuse the option ``receipt`` for a request that cannot have one. Raises InvalidRequest."""
    if options.receipt:
        raise InvalidRequest(f"receipt=True: {why}, and such a run has no receipt: leave receipt out")


def _defaults(chain: Chain) -> dict[str, Any]:
    """The numbers of the steps that have an effect, also those that the request did not give."""
    return {
        name: value
        for step in chain.steps
        for name in options_of_step(type(step))
        if isinstance(value := getattr(step, name), (bool, int, float))
    }


def options_of(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request from the options of its receipt. Raises InvalidRequest if they are damaged."""
    options = {name: value for name, value in recorded.items() if name not in (*WITHOUT_EFFECT, "max_time")}
    if "logit_bias" in options:
        try:
            options["logit_bias"] = {token: float(amount) for token, amount in options["logit_bias"]}
        except (TypeError, ValueError):
            raise InvalidRequest("receipt: logit_bias must be a list of tokens with numbers") from None
    return options


def _plain(name: str, value: Any) -> Any:
    """An option as JSON values. Raises InvalidRequest."""
    if name == "logit_bias" and isinstance(value, Mapping):
        # Pairs keep ids and texts apart, and texts of numbers have infinity. JSON has neither.
        pairs = value.items()
        value = [[token, repr(float(amount)) if _is_real(amount) else amount] for token, amount in pairs]
    if name == "json_schema" and hasattr(value, "model_json_schema"):  # a class of pydantic
        value = value.model_json_schema()
    try:
        text = json.dumps(value, allow_nan=False, default=_number)
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(
            f"{name}={brief(value)}: a receipt can hold only plain values: leave {name} or receipt out"
        ) from None
    # The order of a schema's keys is the order of the answer's keys. A text keeps it in programs that sort keys.
    plain = text if name == "json_schema" and not isinstance(value, str) else json.loads(text)
    canonical(plain)
    return plain


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    """A NumPy number or array as plain values."""
    return value.tolist()
