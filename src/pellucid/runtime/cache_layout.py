"""What layers keep in the cache, and which of them share pages.

Layers that keep the same tokens are a *group*: all layers with full attention; those with a window of a certain size;
those with chunks of a certain size.
A page holds the keys and values of 64 tokens in every layer of its group, one layer after the other
(``kernels/attention/kv_layout.py`` defines the layout of a layer), so it can be copied, hashed or freed as one run of
bytes. Recurrent layers keep one state for a sequence instead of something for each token: a page of their group holds
the states of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, TypeAlias

from msgspec import Struct

from pellucid.kernels.attention.kv_layout import PAGE, head_bytes
from pellucid.runtime.memory import CACHE_LINE
from pellucid.runtime.processors import machine_bytes

SLACK = PAGE
"""Tokens that are kept beyond a window, so that a sequence can be truncated by a few."""
STATES_KEPT = 4
"""Snapshots that a sequence keeps if it has a state; with windows alone it keeps one."""


class LayerShape(Struct, frozen=True):
    """The heads of one layer: G key/value heads, keys of width K and values of width V.

    ``kv_dtype`` is one of ``kv_layout.KV_DTYPES``. ``window`` is how many tokens a token sees, itself among them; 0:
    all. ``chunked``: of those only the tokens of its own chunk of ``window`` tokens.
    """

    kv_heads: int
    head_dim: int
    value_dim: int
    kv_dtype: str = "f16"
    window: int = 0
    chunked: bool = False
    recurrent: ClassVar[bool] = False

    @property
    def key_bytes(self) -> int:
        """Bytes of a page's keys in this layer."""
        return self.kv_heads * head_bytes(self.kv_dtype, self.head_dim)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page's keys and values in this layer."""
        return self.key_bytes + self.kv_heads * head_bytes(self.kv_dtype, self.value_dim)

    def seen(self, length: int) -> int:
        """How many tokens the last one of a sequence of ``length`` tokens sees, itself among them."""
        return length - _first_seen(length, self.window, self.chunked)

    def offset(self, part: str) -> int:
        """Where the "keys" or "values" begin in the layer's part of a page."""
        return {"keys": 0, "values": self.key_bytes}[part]


class StateShape(Struct, frozen=True):
    """The state of one recurrent layer: its parts by name, each a number of float32 values."""

    parts: tuple[tuple[str, int], ...]
    window: ClassVar[int] = 0
    chunked: ClassVar[bool] = False
    recurrent: ClassVar[bool] = True

    @property
    def page_bytes(self) -> int:
        """Bytes of the layer's state; each part begins at a cache line."""
        return sum(_lines(size) for _, size in self.parts)

    def offset(self, part: str) -> int:
        """Where a part begins in the layer's state."""
        names = [name for name, _ in self.parts]
        return sum(_lines(size) for _, size in self.parts[: names.index(part)])


def _lines(values: int) -> int:
    """Bytes of whole cache lines for float32 values."""
    return -(-4 * values // CACHE_LINE) * CACHE_LINE


CachedLayer: TypeAlias = LayerShape | StateShape


class LayerGroup(Struct, frozen=True):
    """Layers that share pages. ``offsets`` is where each of them begins in a page, by its number."""

    window: int
    chunked: bool
    recurrent: bool
    offsets: Mapping[int, int]
    page_bytes: int

    def first_needed(self, length: int) -> int:
        """The first page that a sequence of ``length`` tokens still needs."""
        return _first_seen(length + 1, self.window, self.chunked) // PAGE


def _first_seen(length: int, window: int, chunked: bool) -> int:
    """The first token that the last one of a sequence of ``length`` tokens sees."""
    if not window:
        return 0
    return max(0, (length - 1) // window * window if chunked else length - window)


def groups_of(layers: Iterable[CachedLayer]) -> tuple[LayerGroup, ...]:
    """The groups, in the order of their first layers; that of the states, if there is one, is the last."""
    members: dict[tuple[bool, int, bool], dict[int, CachedLayer]] = {}
    for number, layer in enumerate(layers):
        members.setdefault((layer.recurrent, layer.window, layer.chunked), {})[number] = layer
    found = []
    for (recurrent, window, chunked), of_group in sorted(members.items(), key=lambda item: item[0][0]):
        offsets, size = {}, 0
        for number, layer in of_group.items():
            offsets[number] = size
            size += layer.page_bytes
        found.append(LayerGroup(window, chunked, recurrent, offsets, size))
    return tuple(found)


def page_counts(
    layers: Iterable[CachedLayer], context: int, step_tokens: int, sequences: int, memory: int | None = None
) -> list[int]:
    """Pages of each group for ``sequences`` contexts of ``context`` tokens. Memory is only taken when it is touched.

    The pages of a group take at most a quarter of the ``memory`` (None: this machine's), unless that is less than one
    context and one page for each sequence. A step may bring ``step_tokens`` tokens before a window slides.
    """
    pages = -(-context // PAGE)
    allowed = (machine_bytes() if memory is None else memory) // 4
    return [_page_count(group, pages, step_tokens, sequences, allowed) for group in groups_of(layers)]


def _page_count(group: LayerGroup, pages: int, step_tokens: int, sequences: int, allowed: int) -> int:
    if group.recurrent:
        pages = STATES_KEPT + 2  # the sequence's state, the next step's state, and the snapshots
    elif group.window:
        sliding = -(-(group.window + SLACK + step_tokens) // PAGE) + 1
        pages = min(pages, sliding) + -(-group.window // PAGE) + 1
    return max(pages + sequences, min(pages * sequences, allowed // max(group.page_bytes, 1)))
