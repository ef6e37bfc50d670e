"""Looks into the pages of a cache, and counts those that requests have."""

from __future__ import annotations

import numpy as np

from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.llm import LLM
from pellucid.runtime.cache import BlockTable, KVCache


def of_token(cache: KVCache, table: BlockTable, group: int, token: int) -> np.ndarray:
    """The memory of a token of a sequence in a group, as one number."""
    blocks = table.blocks[group]
    page = cache.pools[group].bytes_of(blocks.pages[token // PAGE - blocks.first])
    return page[token % PAGE * 8 :][:8].view(np.int64)


def of_state(cache: KVCache, page: int) -> np.ndarray:
    """The memory of a state, as one number."""
    return cache.pools[-1].bytes_of(page)[:8].view(np.int64)


def in_use(llm: LLM) -> int:
    """Pages that requests have, beside the prefix cache, when all has run that can."""
    llm.engine.settle()
    llm.runner.cache.clear_prefixes()
    return llm.runner.cache.kv.pages - llm.runner.cache.kv.free_pages


def lose_pages(llm: LLM) -> None:
    """Take the pages of all paused requests, and those of the prefix cache."""
    llm.engine.settle()
    for job in llm.engine._scheduler:
        llm.engine._scheduler._preempt(job)
    llm.runner.cache.clear_prefixes()
