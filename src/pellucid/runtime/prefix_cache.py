"""The prefix cache: pages of earlier sequences, shared by new sequences with the same prefix.

The prefix cache is a tree of pages. A node has the tokens of one page. The nodes on the path from the root have all
earlier tokens, so a page is found by its own tokens and all tokens before them. A node holds a reference to its page in
each attention group. In a group with a window, the page may have been released. A node may also hold the recurrent
state after its last token. The last node of a path may have fewer tokens than a page.

The least recently used nodes are evicted when their pages are needed, or when the tree exceeds its memory limit.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain, count

from msgspec import Struct, field

from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.runtime.cache import NONE, Blocks, BlockTable, KVCache

DEFAULT_BYTES = 512 << 20  # the default size if the weights are smaller
MEMORY_SHARE = 16  # a default cache takes at most 1/16 of the memory
# An eviction searches the whole tree. So it frees 1/64 of the cache more than needed, and evictions are rarer.
SPARE_SHARE = 64


class _Node(Struct, eq=False):
    """A node of the tree: the tokens of one page, or of a part of a page at the end of a sequence.

    ``pages`` has a page for each attention group, or NONE if the page was released. ``used`` is the time of the last
    use, on a clock that counts uses. ``name`` identifies the tokens of a whole page and all tokens before them
    (``page_name``).

    ``full_pages`` maps tokens to the children with a whole page. ``partial_pages`` lists the children with fewer
    tokens.
    """

    tokens: tuple[int, ...] = ()
    parent: _Node | None = None
    pages: list[int] = field(default_factory=list)
    state: int = NONE
    used: int = 0
    name: int = 0
    full_pages: dict[tuple[int, ...], _Node] = field(default_factory=dict)
    partial_pages: list[_Node] = field(default_factory=list)

    @property
    def is_leaf(self) -> bool:
        return not self.full_pages and not self.partial_pages

    @property
    def is_kept(self) -> bool:
        """True if this node of a whole page, and therefore all nodes before it, are still in the tree."""
        return self.parent is not None and self.parent.full_pages.get(self.tokens) is self

    def children(self) -> Iterator[_Node]:
        return chain(self.full_pages.values(), self.partial_pages)

    def below(self) -> Iterator[_Node]:
        """All descendants of this node."""
        left = list(self.children())
        while left:
            node = left.pop()
            yield node
            left.extend(node.children())


class PrefixCache:
    """The prefix cache of a `KVCache`, at most ``limit`` bytes.

    The `KVCache` calls it to evict pages if too few pages are free. Callers hold the lock of the `KVCache`.
    """

    def __init__(self, cache: KVCache, limit: int) -> None:
        self._cache, self.limit = cache, limit
        self._root, self._clock = _Node(), count(1)
        self._stuck = 0
        self.nbytes = 0
        """Bytes of all pages in the tree, including pages that running sequences share."""
        self.listener: Callable[[int, bool], object] | None = None
        """Called with the name of a whole page (``page_names``) and True when it is added, False when evicted."""
        cache.reclaim = self._evict

    def find(self, ids: Sequence[int], max_tokens: int) -> BlockTable:
        """A new block table with the longest cached prefix of ``ids``, at most ``max_tokens`` tokens.

        The block table may be shorter than the prefix in the tree if a window page was released or a state is missing.
        """
        path = self._matches(ids, max_tokens)
        for index in range(len(path) - 1, -1, -1):
            node, common = path[index]
            length = index * PAGE + common
            if self._cache.has_states and (node.state == NONE or common < len(node.tokens)):
                continue
            if all(self._windows_at(path, group, length) for group in self._cache.windows):
                self._mark_used(node)
                return self._block_table(path, length, node.state)
        return BlockTable()

    def match(self, ids: Sequence[int], max_tokens: int) -> int:
        """Length of the prefix of ``ids`` in the tree, at most ``max_tokens``, regardless of windows and states."""
        return sum(common for _, common in self._matches(ids, max_tokens))

    def insert(
        self, table: BlockTable, tokens: Sequence[int], *, grows: bool = False, path: list[_Node] | None = None
    ) -> None:
        """Add the pages of a block table to the tree. ``tokens`` begin with its tokens. The table does not change.

        If the sequence still ``grows``, only whole pages are added. A partial last page would be shared, and would have
        to be copied before the next token. ``path`` lists the nodes that earlier calls added for the same sequence.
        This call extends the list.
        """
        cache, path = self._cache, [] if path is None else path
        pages, end = dict(enumerate(table.blocks)), table.length // PAGE * PAGE if grows else table.length
        del path[end // PAGE :]
        while path and not path[-1].is_kept:
            path.pop()
        node = path[-1] if path else self._root
        for start in range(len(path) * PAGE, end, PAGE):
            part = tuple(tokens[start : min(start + PAGE, end)])
            child = self._child(node, part)
            if child is None:
                break
            self._add_pages(child, len(path), pages)
            path.append(child)
            node = child
        if cache.has_states and end == table.length > 0:
            self._add_state(node, table.state)
        for snapshot in table.snapshots:
            last = snapshot.length // PAGE
            for index in range(min((blocks.first for blocks in snapshot.windows.values()), default=last), last):
                self._add_pages(path[index], index, snapshot.windows)
            self._add_state(path[last - 1], snapshot.state)
        self._mark_used(node)
        if self.nbytes > max(self.limit, self._stuck):
            self._remove_leaves(lambda: self.nbytes <= self.limit - self.limit // SPARE_SHARE)
            # If running sequences use all remaining pages, do not search again until the tree has grown.
            self._stuck = self.nbytes + self.limit // SPARE_SHARE if self.nbytes > self.limit else 0

    def clear(self) -> None:
        """Release all pages."""
        for node in list(self._root.below()):
            self._release(node)
            self._notify(node, False)
        self._root, self._stuck = _Node(), 0

    def names(self) -> list[int]:
        """The names of all whole pages."""
        return [node.name for node in self._root.below() if len(node.tokens) == PAGE]

    def _notify(self, node: _Node, added: bool) -> None:
        if self.listener and len(node.tokens) == PAGE:
            self.listener(node.name, added)

    def _matches(self, ids: Sequence[int], max_tokens: int) -> list[tuple[_Node, int]]:
        """The nodes that match the first ``max_tokens`` tokens of ``ids``, each with its number of matching tokens."""
        path, node, done = list[tuple[_Node, int]](), self._root, 0
        while done < max_tokens:
            part = tuple(ids[done : done + PAGE])
            found, common = node.full_pages.get(part), PAGE
            if found is None:
                found, common = self._best_partial(node, part)
            common = min(common, max_tokens - done)
            if found is None or not common:
                break
            path.append((found, common))
            done, node = done + common, found
            if common < PAGE:
                break
        return path

    def _best_partial(self, node: _Node, part: tuple[int, ...]) -> tuple[_Node | None, int]:
        """The child with the longest common prefix with ``part``, and the length of this prefix.

        In models with states all tokens of the child must match, and the child must have a state.
        """
        best: tuple[_Node | None, int] = (None, 0)
        for child in node.children():
            common = _common(child.tokens, part)
            if common > best[1] and not (
                self._cache.has_states and (common < len(child.tokens) or child.state == NONE)
            ):
                best = child, common
        return best

    def _windows_at(self, path: list[tuple[_Node, int]], group: int, length: int) -> bool:
        """True if the tree has all pages that a sequence of ``length`` tokens needs in a group with a window."""
        first = self._cache.groups[group].first_needed(length)
        return all(node.pages[group] != NONE for node, _ in path[first : -(-length // PAGE)])

    def _block_table(self, path: list[tuple[_Node, int]], length: int, state: int) -> BlockTable:
        """A block table of the first ``length`` tokens of a path."""
        cache, blocks = self._cache, list[Blocks]()
        for group in cache.attention:
            first = cache.groups[group].first_needed(length)
            nodes = (node for node, _ in path[first : -(-length // PAGE)])
            blocks.append(Blocks(first, [cache.pools[group].share(node.pages[group]) for node in nodes]))
        return BlockTable(length, blocks, cache.pools[-1].share(state) if cache.has_states else NONE)

    def _child(self, node: _Node, part: tuple[int, ...]) -> _Node | None:
        """Find or add the child with the tokens ``part``. None if a longer child begins with these tokens."""
        if found := node.full_pages.get(part):
            return found
        is_full = len(part) == PAGE
        if not is_full:
            for child in node.children():
                more = child.tokens[: len(part)] == part
                if more and (child.tokens == part or not self._cache.has_states):
                    return child if child.tokens == part else None
        for child in [] if self._cache.has_states else list(node.partial_pages):
            if part[: len(child.tokens)] == child.tokens:
                self._remove(child)
        child = _Node(part, node, [NONE] * len(self._cache.attention))
        if is_full:
            node.full_pages[part] = child
            child.name = page_name(node.name, part)
            self._notify(child, True)
        else:
            node.partial_pages.append(child)
        return child

    def _add_pages(self, node: _Node, index: int, pages: Mapping[int, Blocks]) -> None:
        """Add missing pages to the node of page ``index`` of a sequence. ``pages`` has all its pages, by group."""
        for group, blocks in pages.items():
            if node.pages[group] == NONE and blocks.first <= index < blocks.end:
                pool = self._cache.pools[group]
                node.pages[group] = pool.share(blocks.pages[index - blocks.first])
                self.nbytes += pool.page_bytes

    def _add_state(self, node: _Node, state: int) -> None:
        if node.state == NONE and state != NONE:
            node.state = self._cache.pools[-1].share(state)
            self.nbytes += self._cache.pools[-1].page_bytes

    def _mark_used(self, node: _Node | None) -> None:
        """Set the time of the last use of a node and of all nodes before it."""
        now = next(self._clock)
        while node:
            node.used, node = now, node.parent

    def _evict(self, needed: Mapping[int, int]) -> None:
        """Evict pages until each group has the number of free pages in ``needed``. Pages in use by sequences remain."""
        for group, pages in needed.items():
            pool = self._cache.pools[group]
            if pool.free >= pages:
                continue
            enough = min(pages + pool.count // SPARE_SHARE, pool.count)
            if self._cache.groups[group].recurrent or self._cache.groups[group].window:
                self._release_in_group(group, enough)
            else:
                self._remove_leaves(lambda pool=pool, enough=enough: pool.free >= enough)  # type: ignore[misc]
                if pool.free < pages:
                    self._remove_leaves(lambda pool=pool, pages=pages: pool.free >= pages, group)  # type: ignore[misc]

    def _release_in_group(self, group: int, enough: int) -> None:
        """Release states, or pages of a group with a window. Their nodes stay in the tree."""
        pool, recurrent = self._cache.pools[group], self._cache.groups[group].recurrent
        for node in sorted(self._root.below(), key=lambda node: node.used):
            page = node.state if recurrent else node.pages[group]
            if page == NONE or pool.shared(page):
                continue
            pool.release(page)
            self.nbytes -= pool.page_bytes
            if recurrent:
                node.state = NONE
            else:
                node.pages[group] = NONE
            self._prune(node)
            if pool.free >= enough:
                return

    def _prune(self, node: _Node | None) -> None:
        """Remove a leaf that has neither pages nor a state. Do the same with its parents."""
        while node and node.parent and node.is_leaf and node.state == NONE and set(node.pages) <= {NONE}:
            parent = node.parent
            self._remove(node)
            node = parent

    def _remove_leaves(self, enough: Callable[[], bool], group: int | None = None) -> None:
        """Evict the least recently used leaves whose pages no sequence uses, until ``enough`` is true.

        With a ``group``, also evict a leaf whose pages are in use if a node before the leaf has an unused page of the
        group.
        """
        number = count()
        leaves = [(node.used, next(number), node) for node in self._root.below() if node.is_leaf]
        heapq.heapify(leaves)
        while leaves and not enough():
            _, _, node = heapq.heappop(leaves)
            if any(page != NONE and self._cache.pools[at].shared(page) for at, page in enumerate(node.pages)) and (
                group is None or not self._has_unused(node, group)
            ):
                continue
            parent = node.parent
            self._remove(node)
            if parent and parent.parent and parent.is_leaf:
                heapq.heappush(leaves, (parent.used, next(number), parent))

    def _has_unused(self, node: _Node, group: int) -> bool:
        """True if a node before this node has a page of the group that no sequence uses."""
        pool, before = self._cache.pools[group], node.parent
        while before and before.parent:
            if before.pages[group] != NONE and not pool.shared(before.pages[group]):
                return True
            before = before.parent
        return False

    def _remove(self, node: _Node) -> None:
        self._release(node)
        self._notify(node, False)
        assert node.parent
        if len(node.tokens) == PAGE:
            del node.parent.full_pages[node.tokens]
        else:
            node.parent.partial_pages.remove(node)

    def _release(self, node: _Node) -> None:
        """Release the pages of a node."""
        for group, page in enumerate(node.pages):
            if page != NONE:
                self._cache.pools[group].release(page)
                self.nbytes -= self._cache.pools[group].page_bytes
        if node.state != NONE:
            self._cache.pools[-1].release(node.state)
            self.nbytes -= self._cache.pools[-1].page_bytes


def default_bytes(weights: int, memory: int) -> int:
    """Default size of a prefix cache in bytes: the size of the model's ``weights``, but at least 512 MiB.

    The size is limited to a sixteenth of the machine's ``memory`` (0: unknown).
    """
    return min(max(weights, DEFAULT_BYTES), memory // MEMORY_SHARE or DEFAULT_BYTES)


def page_name(before: int, tokens: Sequence[int]) -> int:
    """The name of a page: a 63-bit hash, never 0, of its tokens and of the previous page's name (0: no such page)."""
    digest = blake2b(before.to_bytes(8, "little") + array("q", tokens).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1


def page_names(ids: Sequence[int]) -> Iterator[int]:
    """The names of the whole pages of a text, in order. Equal names mean equal texts up to the end of the page."""
    name = 0
    for start in range(0, len(ids) // PAGE * PAGE, PAGE):
        name = page_name(name, ids[start : start + PAGE])
        yield name


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (one, other) in enumerate(zip(a, b)) if one != other), min(len(a), len(b)))
