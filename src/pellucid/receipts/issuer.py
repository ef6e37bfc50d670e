"""Makes the receipts of a request's answers: the hashes of the model, the edits, the chain of tokens."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from threading import Lock
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import astuple

from pellucid.errors import InvalidRequest, KernelError, brief
from pellucid.kernels.core.definitions import KernelKey
from pellucid.plan.plan import Plan
from pellucid.receipts.receipt import EditRecord, ModelIdentity, Receipt, ReceiptRequest, Signer, canonical, issued
from pellucid.sample.chain import SEED_BITS, Chain
from pellucid.sample.options import Options
from pellucid.sample.step import options_of as options_of_step
from pellucid.tokenize import Tokenizer
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.manifest import tensor_hash
from pellucid.weights.sources.source import DownloadProgress


class EditLike(Protocol):
    @property
    def where(self) -> str: ...
    @property
    def factor(self) -> float: ...
    @property
    def values(self) -> Any: ...
    @property
    def function(self) -> Any: ...


def edit_records(edits: Sequence[EditLike]) -> list[EditRecord]:
    """The records of edits. An array is recorded by its hash. Raises InvalidRequest if an edit has a function, which
    cannot be replayed.
    """
    records = []
    for edit in edits:
        if edit.function is not None:
            raise InvalidRequest(
                f"edits of {brief(edit.where)}: a receipt cannot hold a function: give values, or leave receipt out"
            )
        value = values = None
        if edit.values is not None:
            array = np.asarray(edit.values, "<f4")
            if array.ndim:
                shape = repr(array.shape).encode()
                values = hashlib.sha256(shape + np.ascontiguousarray(array).tobytes()).hexdigest()
            else:
                value = repr(float(array))
        records.append(EditRecord(edit.where, repr(float(edit.factor)), value, values))
    return records


# The hashes that identify a model in a receipt: of its weights, its tokenizer and its plan.

# An import of the package would count as an import of everything in it.
PELLUCID_VERSION: str = sys.modules["pellucid"].__version__


def plan_hash(plan: Plan) -> str:
    """SHA-256 (hexadecimal) of everything in a plan that bits depend on.

    Hashes the operations before the passes with their kernels and numbers, the buffers with their activation bits, the
    layers in the cache with their dtypes, and all constants. Instruction set and number of threads have no effect.
    """
    whole = plan.source or plan
    parts = [
        [[op.stage, op.kernel, op.fields, op.reads, op.writes, op.rows] for op in whole.operations],
        whole.buffers,
        whole.constants,
        whole.layers,
        whole.tables,
        whole.output,
        [plan_hash(plan.setup.plan), plan.setup.rows] if plan.setup else None,
        plan_hash(plan.encoder) if plan.encoder else None,
    ]
    return hashlib.sha256(json.dumps(_plain(parts)).encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        return [type(value).__name__, *map(_plain, astuple(value))]
    if isinstance(value, KernelKey):
        return [value.name, *sorted([name, str(own)] for name, own in value.parameters)]
    if isinstance(value, Mapping):
        return [[name, _plain(one)] for name, one in value.items()]
    if isinstance(value, (list, tuple)):
        return list(map(_plain, value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a plan holds {type(value).__name__}")


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 (hexadecimal) of a vocabulary: the bytes and the type of each token, and the tokens that end a text."""
    digest, vocabulary = hashlib.sha256(), tokenizer.vocabulary
    for token in vocabulary.tokens:
        piece = token.encode("utf-8", "surrogatepass")
        digest.update(len(piece).to_bytes(4, "little") + piece)
    digest.update(vocabulary.types)
    digest.update(json.dumps([tokenizer.bos_id, sorted(tokenizer.eos_ids)]).encode("ascii"))
    return digest.hexdigest()


class ModelIdentifier:
    """Computes the identity of a loaded model at the first call, and keeps it. Any thread may call it.

    ``context``, ``precise``, ``kv_cache`` and ``activations`` are the options that the model was loaded with.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        plan: Plan,
        context: int,
        precise: bool,
        kv_cache: str | None,
        activations: int | None = None,
    ) -> None:
        self._checkpoint, self._tokenizer, self._plan = checkpoint, tokenizer, plan
        self._loaded = context, precise, kv_cache, activations
        self._lock = Lock()
        self._found: ModelIdentity | None = None

    def __call__(self, progress: DownloadProgress | None = None) -> ModelIdentity:
        """The identity. ``progress`` observes the reading of the weights. Raises: as ``tensor_hash``."""
        with self._lock:
            if self._found is None:
                path = self._checkpoint.path
                name = path.stem if self._checkpoint.kind == "gguf" else path.name
                self._found = ModelIdentity(
                    name[:256],
                    PELLUCID_VERSION,
                    tensor_hash(self._checkpoint, progress),
                    tokenizer_hash(self._tokenizer),
                    plan_hash(self._plan),
                    *self._loaded,
                )
            return self._found


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
            name: _issuer_plain(name, value)
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


STOPPING = "a probe may end the text"  # a reason to refuse a receipt


def refuse_receipt(options: Options, why: str) -> None:
    if options.receipt:
        raise InvalidRequest(f"receipt=True: {why}, and such a run has no receipt: leave receipt out")


def _defaults(chain: Chain) -> dict[str, Any]:
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


def _issuer_plain(name: str, value: Any) -> Any:
    if name == "logit_bias" and isinstance(value, Mapping):
        # Pairs keep ids and texts apart, and texts of numbers have infinity. JSON has neither.
        pairs = value.items()
        value = [[token, repr(float(amount)) if _is_real(amount) else amount] for token, amount in pairs]
    if name == "json_schema" and hasattr(value, "model_json_schema"):  # a class of pydantic
        value = value.model_json_schema()
    try:
        text = json.dumps(value, allow_nan=False, default=lambda own: own.tolist())  # of NumPy
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
