"""Reads pages of a KV cache, and counts the pages in use."""

from __future__ import annotations

import threading

import numpy as np

from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.llm import LLM
from pellucid.runtime.cache import BlockTable, KVCache


def of_token(cache: KVCache, table: BlockTable, group: int, token: int) -> np.ndarray:
    """First eight bytes of a sequence's token in a group, as one int64."""
    blocks = table.blocks[group]
    page = cache.pools[group].bytes_of(blocks.pages[token // PAGE - blocks.first])
    return page[token % PAGE * 8 :][:8].view(np.int64)


def of_state(cache: KVCache, page: int) -> np.ndarray:
    """First eight bytes of a state page, as one int64."""
    return cache.pools[-1].bytes_of(page)[:8].view(np.int64)


def in_use(llm: LLM) -> int:
    """Number of pages that requests hold, without the prefix cache, after the engine has settled."""
    llm.engine.settle()
    llm.runner.cache.clear_prefixes()
    return llm.runner.cache.kv.pages - llm.runner.cache.kv.free_pages


def lose_pages_between_steps(llm: LLM) -> None:
    """Preempt all requests before the next step, and wait until this is done."""
    done = threading.Event()

    def preempt() -> None:
        llm.engine.preempt()
        done.set()

    assert llm.engine.between_steps(preempt)
    assert done.wait(60)


def lose_pages(llm: LLM) -> None:
    """Preempt all requests, which frees their pages, and clear the prefix cache."""
    llm.engine.settle()
    llm.engine.preempt()
    llm.runner.cache.clear_prefixes()
