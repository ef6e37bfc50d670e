"""Makes a ``StringArray`` of any strings, like the GGUF reader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pellucid.weights.gguf_values import StringArray
from support.model_files import gguf_string


def string_array(strings: Sequence[str]) -> StringArray:
    encoded = [*map(gguf_string, strings)]
    return StringArray(b"".join(encoded), np.cumsum([*map(len, encoded)], dtype=np.int64))
