"""The hashes that identify a model in a receipt: of its weights, its tokenizer and its plan."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from threading import Lock
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple

from pellucid.kernels.core.definitions import KernelKey
from pellucid.plan.plan import Plan
from pellucid.receipts.receipt import ModelIdentity
from pellucid.tokenize import Tokenizer
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.sources.source import DownloadProgress
from pellucid.weights.tensor_hash import tensor_hash

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
    """A part of a plan as lists and numbers."""
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
