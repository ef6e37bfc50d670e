"""The rows of an activation dataset for PyTorch's ``DataLoader``. Needs PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.dataset.columns import RowArray

torch: Any = importlib.import_module("torch")


class TorchRows(torch.utils.data.Dataset):  # type: ignore[misc]
    """A map-style dataset: row i is a tensor of the column, or a tuple of tensors of several columns."""

    def __init__(self, data: Any, names: Sequence[str]) -> None:
        self._data, self._names = data, tuple(names)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> Any:
        tensors = tuple(_tensor(self._data[name], [row])[0] for name in self._names)
        return tensors[0] if len(tensors) == 1 else tensors

    def __getitems__(self, rows: list[int]) -> list[Any]:
        """The rows of a batch, which a ``DataLoader`` asks for together."""
        tensors = [_tensor(self._data[name], rows) for name in self._names]
        return list(tensors[0]) if len(tensors) == 1 else list(zip(*tensors))


def _tensor(column: RowArray, rows: Sequence[int]) -> Any:
    values: NDArray[Any] = column.stored(np.asarray(rows, np.int64))
    if column.stored_dtype == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
