"""The id of an answer of a batch. It binds the answer to its request, to the model and to the options.

A resumed batch compares the ids in its output with the ids that it would write. So a file never mixes the answers of
different models, options or requests.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from msgspec import Struct

from pellucid.load_options import LoadOptions

PREFIX = "batch_req_"
DIGITS = 12  # hexadecimal digits of each hash
_ID = re.compile(rf"{PREFIX}([0-9a-f]{{{DIGITS}}})-([0-9a-f]{{{DIGITS}}})-([0-9a-f]{{{DIGITS}}})")
_WITHOUT_EFFECT = {"threads", "pin", "cache_memory", "draft", "pulls", "dictionaries"}
"""Fields of LoadOptions that change no answer."""


class AnswerId(Struct, frozen=True):
    """Hashes of what an answer depends on. The id as a text is ``str(answer_id)``."""

    request: str
    model: str
    options: str

    @classmethod
    def parse(cls, text: Any) -> AnswerId | None:
        """The id with this text; None if the text is no id."""
        match = _ID.fullmatch(text) if isinstance(text, str) else None
        return cls(*match.groups()) if match else None

    def __str__(self) -> str:
        return f"{PREFIX}{self.request}-{self.model}-{self.options}"


def hash_of(value: Any) -> str:
    """A hash of a JSON value. The order of keys counts, because it can change a prompt."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:DIGITS]


def options_hash(options: LoadOptions, vectors: str = "") -> str:
    """A hash of the options that can change an answer, and of registered vectors (``RegisteredVectors.digest``)."""
    names = [name for name in LoadOptions.__struct_fields__ if name not in _WITHOUT_EFFECT]
    control = {"vectors": vectors} if vectors else {}
    return hash_of({name: getattr(options, name) for name in names} | control)
