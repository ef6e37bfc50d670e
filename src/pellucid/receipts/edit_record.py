"""The edits of a request in its receipt, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.receipts.receipt import EditRecord


class EditLike(Protocol):
    """The part of ``trace.edits.Edit`` that a receipt records."""

    @property
    def where(self) -> str: ...
    @property
    def factor(self) -> float: ...
    @property
    def values(self) -> Any: ...
    @property
    def function(self) -> Any: ...


def edit_records(edits: Sequence[EditLike]) -> list[EditRecord]:
    """The records of edits. An array is recorded by its hash.

    Raises:
        InvalidRequest: an edit has a function, which cannot be replayed.
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
