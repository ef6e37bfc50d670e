"""The known block formats, which the modules of ``formats/`` declare."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from pellucid.errors import UnsupportedModel
from pellucid.util.registry import discover
from pellucid.weights.quant.format import Format


@functools.cache
def formats() -> Mapping[str, Format]:
    """Every format, by its name in GGUF.

    Raises:
        TypeError: two files declare the same format.
    """
    return discover("pellucid.weights.quant.formats", Format, lambda form: (form.name,))


def lookup(name: str, what: str) -> Format:
    """The format called ``name``.

    Raises:
        UnsupportedModel: the format is not implemented. The message lists the implemented formats.
    """
    try:
        return formats()[name]
    except KeyError:
        known = ", ".join(sorted(formats()))
        raise UnsupportedModel(
            f"{what} is stored as {name}, which is not supported (known: {known})"
        ) from None
