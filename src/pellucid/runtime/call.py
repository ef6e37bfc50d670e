"""A compiled kernel that Python calls directly, outside a plan. Each call has a new record of arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
from pellucid.kernels.core.record import Record, float_word
from pellucid.runtime.memory import address


class Call:
    """A compiled kernel as a Python function. The arguments are the fields of the kernel's record.

    The fields in ``known`` have the same value in every call. The record holds only the addresses of arrays, so the
    object keeps a reference to each array in ``known``.
    """

    def __init__(self, key: KernelKey, record: type[Record], **known: Any) -> None:
        self._run = shared().function(key)
        self._arrays = [value for value in known.values() if isinstance(value, np.ndarray)]
        values = {name: address(v) if isinstance(v, np.ndarray) else v for name, v in known.items()}
        fields = dict.fromkeys(record.fields, 0) | values
        self._words = np.array(record.pack(fields), np.int64)
        self._word_index = {field: offset // 8 for field, offset in record.at._asdict().items()}

    def __call__(self, **fields: int | float) -> None:
        words = self._words.copy()
        view: Any = words.data
        for name, value in fields.items():
            view[self._word_index[name]] = float_word(value) if type(value) is float else value
        self._run(address(words), 0, 0, 0)
