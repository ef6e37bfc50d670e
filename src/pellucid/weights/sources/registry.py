"""The known sources, which the modules of ``schemes/`` declare."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from pellucid.util.registry import discover
from pellucid.weights.sources.source import Source


@functools.cache
def sources() -> Mapping[str, Source]:
    """Every source, by its scheme.

    Raises:
        TypeError: two files declare the same scheme.
    """
    return discover("pellucid.weights.sources.schemes", Source, lambda source: (source.scheme,))  # type: ignore[type-abstract]
