"""The key/value cache: owns the pages of keys, values and states, and allocates them to sequences.

Each group of layers has a pool of pages (``cache_layout.py``). The block table of a sequence lists its pages in each
group. Pages that have slid out of a group's window are released.

Pages are copied on write: a fork of a sequence shares the pages until one of the two sequences writes to them. A
sequence writes only to its last page, and only if this page is not full. If the page is shared, the sequence first gets
a copy of the page. A state needs no copy. A step reads the state from one page and writes the new state to another
page, or to the same page if the page is not shared.

A sequence can be truncated to any length whose keys and values are still in the cache. Two things cannot be computed
backwards: an earlier state, and pages that have slid out of a window. So at some page borders a sequence keeps a
*snapshot*: the state and the window pages at this length. Truncation then restores the last snapshot that is not longer
than the wanted length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from pellucid.errors import CacheFull, InvalidRequest
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.runtime.cache_layout import MAX_SNAPSHOTS, SLACK, CachedLayer, Pool, groups_of
from pellucid.runtime.memory import Placement

NONE = -1
SPARE_BYTES = 64 << 20
"""If free pages occupy at most this many bytes, ``trim`` keeps them, so that the next sequences avoid page faults."""


class Blocks(Struct):
    """The pages of a sequence in one group, in order, from page ``first`` on. Earlier pages were released."""

    first: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Number of pages, including released pages."""
        return self.first + len(self.pages)


class Snapshot(Struct, frozen=True):
    """The state page, and the window pages by group, of a sequence at ``length`` tokens. Truncation restores them."""

    length: int
    windows: dict[int, Blocks]
    state: int


class BlockTable(Struct):
    """The part of a sequence that is in the cache: its ``length`` in tokens, and its pages in each attention group.

    ``state`` is the page of the sequence's state. The running step writes to page ``next_state``. NONE means no page.
    """

    length: int = 0
    blocks: list[Blocks] = field(default_factory=list)
    state: int = NONE
    next_state: int = NONE
    snapshots: list[Snapshot] = field(default_factory=list)
    scaled: bool = False
    """True if the positions are scaled, because the text is longer than ``StepLimits.unscaled``."""
    number: int = 0
    """The id of the sequence in other pipeline stages of the model (``cluster/stage_server.py``); 0: no id."""


class KVCache:
    """Pools of pages for all groups of ``layers``. ``pages`` is the number of pages of each group, in order.

    With a ``placement``, the memory of the pages is interleaved over the NUMA nodes of all threads.

    Raises:
        CacheFull: the machine has less memory than the pages need. From ``allocate``: a sequence needs more pages
            than are free.
    """

    def __init__(self, layers: Iterable[CachedLayer], pages: Sequence[int], placement: Placement | None = None) -> None:
        self.layers = tuple(layers)
        self.groups = groups_of(self.layers)
        self.reclaim: Callable[[Mapping[int, int]], None] = lambda needed: None
        """Called when pages run out, with the number of needed pages per group. Evicts pages of ended sequences."""
        total = sum(group.page_bytes * count for group, count in zip(self.groups, pages, strict=True))
        try:
            self.pools = tuple(Pool(group.page_bytes, count) for group, count in zip(self.groups, pages))
        except (MemoryError, ValueError):
            raise CacheFull(
                f"keys and values of {pages[0] * PAGE:,} tokens take {total / 1e9:,.0f} GB, more than this machine "
                "can allocate: load with a smaller context"
            ) from None
        if placement is not None:
            for pool in self.pools:
                placement.interleave(pool.memory)
        self.windows = [i for i, group in enumerate(self.groups) if group.window]
        self.attention = [i for i, group in enumerate(self.groups) if not group.recurrent]
        self._states = self.pools[-1] if self.groups and self.groups[-1].recurrent else None
        self._group_of = {layer: i for i, group in enumerate(self.groups) for layer in group.offsets}

    @property
    def pages(self) -> int:
        """Number of pages of all groups."""
        return sum(pool.count for pool in self.pools)

    @property
    def free_pages(self) -> int:
        """Number of free pages of all groups."""
        return sum(pool.free for pool in self.pools)

    def trim(self) -> None:
        """Return the memory of free pages to the system if it is more than ``SPARE_BYTES``."""
        if sum(pool.idle_bytes for pool in self.pools) > SPARE_BYTES:
            for pool in self.pools:
                pool.trim()

    @property
    def has_states(self) -> bool:
        """True if sequences have a recurrent state. The last pool then holds the pages of states."""
        return self._states is not None

    def group(self, layer: int) -> int:
        """The number of a layer's group."""
        return self._group_of[layer]

    def page_bytes(self, layer: int) -> int:
        """Bytes from one page of a layer's group to the next."""
        return self.pools[self._group_of[layer]].page_bytes

    def address(self, layer: int, part: str) -> int:
        """The address of a part of a layer ("keys", "values", or a part of its state) in page 0 of its group."""
        group = self._group_of[layer]
        within = self.groups[group].offsets[layer] + self.layers[layer].offset(part)
        return self.pools[group].address + within

    def fits(self, lengths: Sequence[int]) -> bool:
        """True if an empty cache has room for new sequences of all these ``lengths``, each computed in one step."""
        needed = sum(-(-length // PAGE) for length in lengths)
        states = self._states is None or len(lengths) <= self._states.count
        return states and all(needed <= self.pools[group].count for group in self.attention)

    def allocate(self, table: BlockTable, tokens: int, *, in_place: bool = True) -> None:
        """Allocate the pages of a block table for ``tokens`` more tokens.

        Call ``begin`` before the step that computes the tokens, and ``advance`` after the step. Pass ``in_place`` False
        if the step may be discarded: the step then writes the state to another page.

        Raises:
            CacheFull: not enough pages are free.
            InvalidRequest: the last step was interrupted, and the state of the sequence is lost.
        """
        if not table.blocks:
            table.blocks = [Blocks() for _ in self.attention]
        if self._states and table.length and table.state == NONE:
            raise InvalidRequest(
                f"the last step of a sequence of {table.length:,} tokens was interrupted, and its state is lost: "
                "truncate it, and run its tokens again"
            )
        if self._states is None and self._has_room(table, tokens):  # the most frequent case
            return
        if self._shortage(table, tokens, in_place):
            self.reclaim(self._needed(table, tokens, in_place))
        if self._shortage(table, tokens, in_place):
            while table.snapshots:
                self._drop_snapshot(table, 0)
        if short := self._shortage(table, tokens, in_place):
            raise CacheFull(short)
        for group in self.attention:
            if self._writes_to_shared(table, group):
                blocks = table.blocks[group]
                index = table.length // PAGE - blocks.first
                blocks.pages[index] = self.pools[group].copy(blocks.pages[index])
            for _ in range(self._missing(table, tokens, group)):
                table.blocks[group].pages.append(self.pools[group].take())
        if self._states and self._needs_state(table, in_place):
            table.next_state = self._states.take()
        elif table.next_state == NONE:
            table.next_state = table.state

    def _has_room(self, table: BlockTable, tokens: int) -> bool:
        """True if ``tokens`` more tokens fit into the pages that a sequence already has."""
        end = table.length + tokens
        return all(
            blocks.end * PAGE >= end and not self._writes_to_shared(table, group)
            for group, blocks in enumerate(table.blocks)
        )

    def _shortage(self, table: BlockTable, tokens: int, in_place: bool) -> str:
        """Error message if ``tokens`` more tokens need pages that are not free; "" if all pages are free."""
        for group, needed in self._needed(table, tokens, in_place).items():
            pool = self.pools[group]
            if needed <= pool.free:
                continue
            if self.groups[group].recurrent:
                return (
                    f"a sequence needs a recurrent state, and other requests or sequences use all {pool.count:,}: "
                    "retry when they end, or request fewer sequences"
                )
            return (
                f"{table.length + tokens:,} tokens need {needed:,} more pages of {PAGE} tokens; {pool.free:,} of "
                f"{pool.count:,} are free, other requests or sequences hold the rest: wait until they end, ask for "
                "fewer or shorter sequences, or load with a larger context"
            )
        return ""

    def _needed(self, table: BlockTable, tokens: int, in_place: bool) -> dict[int, int]:
        """Number of new pages in each group for ``tokens`` more tokens."""
        needed = {
            group: self._missing(table, tokens, group) + self._writes_to_shared(table, group)
            for group in self.attention
        }
        if self._states:
            needed[len(self.groups) - 1] = int(self._needs_state(table, in_place))
        return needed

    @staticmethod
    def _missing(table: BlockTable, tokens: int, group: int) -> int:
        """Number of pages to append for ``tokens`` more tokens. A failed step may already have appended some pages."""
        return max(0, -(-(table.length + tokens) // PAGE) - table.blocks[group].end)

    def _writes_to_shared(self, table: BlockTable, group: int) -> bool:
        """True if the next token goes into a page that other block tables share."""
        index, used = divmod(table.length, PAGE)
        blocks = table.blocks[group]
        return used > 0 and self.pools[group].shared(blocks.pages[index - blocks.first])

    def _needs_state(self, table: BlockTable, in_place: bool) -> bool:
        """True if the next step needs a new state page. A failed step may already have allocated the page."""
        if self._states is None or table.next_state != NONE:
            return False
        return not in_place or table.state == NONE or self._states.shared(table.state)

    def next_state(self, table: BlockTable, layer: int, part: str, size: int) -> NDArray[np.float32]:
        """A view of a part of the state that the running step has written for a layer, (size,) float32."""
        assert self._states is not None
        group = self.groups[self._group_of[layer]]
        start = group.offsets[layer] + self.layers[layer].offset(part)
        return self._states.bytes_of(table.next_state)[start : start + 4 * size].view(np.float32)

    def begin(self, table: BlockTable) -> None:
        """Mark the start of a step. If the step is interrupted, a state that the step writes in place is lost."""
        if table.next_state == table.state:
            table.state = NONE

    def advance(self, table: BlockTable, tokens: int) -> None:
        """Mark the end of a step that wrote ``tokens`` tokens. Releases pages that have slid out of a window."""
        if self._states:
            if table.state != NONE:
                self._states.release(table.state)
            table.state, table.next_state = table.next_state, NONE
        table.length += tokens
        if table.length % PAGE == 0 and (self._states or (self.windows and tokens > 1)):
            self._add_snapshot(table)
        for group in self.windows:
            blocks = table.blocks[group]
            passed = self.groups[group].first_needed(table.length - SLACK) - blocks.first
            if passed > 0:
                for page in blocks.pages[:passed]:
                    self.pools[group].release(page)
                del blocks.pages[:passed]
                blocks.first += passed

    def _add_snapshot(self, table: BlockTable) -> None:
        """Add a snapshot of a sequence that ends at a page border. If there are too many snapshots, drop one."""
        windows = {}
        for group in self.windows:
            first = self.groups[group].first_needed(table.length)
            windows[group] = self._shared_blocks(table, group, first)
        state = self._states.share(table.state) if self._states else NONE
        table.snapshots.append(Snapshot(table.length, windows, state))
        if len(table.snapshots) > (MAX_SNAPSHOTS if self._states else 1):
            self._drop_snapshot(table, _least_useful([one.length for one in table.snapshots]))

    def _shared_blocks(self, table: BlockTable, group: int, first: int) -> Blocks:
        """Share the pages of a sequence in a group, from page ``first`` to the page of the last token."""
        blocks = table.blocks[group]
        first = max(first, blocks.first)
        pages = blocks.pages[first - blocks.first : -(-table.length // PAGE) - blocks.first]
        return self._share(group, Blocks(first, pages))

    def _share(self, group: int, blocks: Blocks) -> Blocks:
        """Return a new list of the same pages, with their reference counts incremented."""
        return Blocks(blocks.first, [self.pools[group].share(page) for page in blocks.pages])

    def _drop_snapshot(self, table: BlockTable, index: int) -> None:
        """Drop a snapshot and release its pages."""
        snapshot = table.snapshots.pop(index)
        for group, blocks in snapshot.windows.items():
            self._release(group, blocks, 0)
        if self._states:
            self._states.release(snapshot.state)

    def _release(self, group: int, blocks: Blocks, keep: int) -> None:
        """Release the pages from page ``keep`` on."""
        index = max(0, keep - blocks.first)
        for page in reversed(blocks.pages[index:]):
            self.pools[group].release(page)
        del blocks.pages[index:]

    def fork(self, table: BlockTable) -> BlockTable:
        """Return a copy of a block table. The two sequences share the pages until one of them writes to a page."""
        states = self._states
        return BlockTable(
            table.length,
            [self._shared_blocks(table, group, 0) for group in range(len(table.blocks))],
            states.share(table.state) if states and table.state != NONE else NONE,
            snapshots=[
                Snapshot(
                    one.length,
                    {group: self._share(group, blocks) for group, blocks in one.windows.items()},
                    states.share(one.state) if states else NONE,
                )
                for one in table.snapshots
            ],
            scaled=table.scaled,
        )

    def truncate(self, table: BlockTable, length: int) -> int:
        """Drop the tokens from ``length`` on, and release the pages that held only these tokens (0: all pages).

        Returns the number of tokens that remain. This is fewer than ``length`` if the cache can restore only a snapshot
        of an earlier length.
        """
        if self._states and table.next_state != NONE:  # a step was interrupted
            if table.next_state != table.state:
                self._states.release(table.next_state)
            table.next_state = NONE
        length = min(length, table.length)
        while table.snapshots and table.snapshots[-1].length > length:
            self._drop_snapshot(table, len(table.snapshots) - 1)
        if not self._holds(table, length):
            length = self._restore(table)
        for group, blocks in enumerate(table.blocks):
            self._release(group, blocks, -(-length // PAGE))
            if not length:
                blocks.first = 0
        if self._states and not length and table.state != NONE:
            self._states.release(table.state)
            table.state = NONE
        while not length and table.snapshots:
            self._drop_snapshot(table, 0)
        table.length = length
        return length

    def _holds(self, table: BlockTable, length: int) -> bool:
        """True if the block table still has the pages and the state of a sequence of ``length`` tokens."""
        if self._states and length and (length < table.length or table.state == NONE):
            return False
        return not length or all(
            table.blocks[group].first <= self.groups[group].first_needed(length) for group in self.windows
        )

    def _restore(self, table: BlockTable) -> int:
        """Restore the last snapshot of a sequence. Returns its length; 0 if there is no snapshot."""
        if not table.snapshots:
            return 0
        snapshot = table.snapshots[-1]
        for group, saved in snapshot.windows.items():
            self._release(group, table.blocks[group], 0)
            table.blocks[group] = self._share(group, saved)
        if self._states:
            if table.state != NONE:
                self._states.release(table.state)
            table.state = self._states.share(snapshot.state)
        return snapshot.length


def _least_useful(lengths: Sequence[int]) -> int:
    """Index of the snapshot to drop, from ``lengths`` in ascending order. The last snapshot is never dropped.

    If a snapshot is missing, truncation falls back to the snapshot before it. The cost of dropping a snapshot is the
    distance between its two neighbours, divided by its own distance from the end, because truncation near the end is
    most frequent.
    """
    end, before = lengths[-1] + PAGE, [0, *lengths]
    costs = [(after - before[i]) / (end - lengths[i]) for i, after in enumerate(lengths[1:])]
    return costs.index(min(costs))
