"""The workspaces of a compiled tokenizer: bounded memory, unchanged ids."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from pellucid.runtime.processors import processors
from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.compiled import workspace as workspaces_module
from pellucid.tokenize.compiled.workspace import Workspace, WorkspacePool


def nbytes(workspace: Workspace) -> int:
    return workspace.short_cache.array.nbytes + workspace.long_cache.array.nbytes


def test_a_workspace_for_short_texts_is_small() -> None:
    workspace = Workspace()
    for _ in range(1000):
        workspace.count_text(50)
    assert nbytes(workspace) < 1 << 20


def test_a_workspace_stays_small_however_long_short_texts_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(workspaces_module.time, "monotonic", lambda: now)
    workspace = Workspace()
    for _ in range(20_000):
        now += 0.1
        workspace.count_text(4000)
    assert nbytes(workspace) < 1 << 20


def test_a_workspace_grows_with_its_text_to_a_limit() -> None:
    workspace, sizes = Workspace(), list[int]()
    for _ in range(2000):
        workspace.count_text(20_000)
        sizes.append(nbytes(workspace))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(workspaces_module.CACHE_SIZES)
    assert sizes[-1] < 40 << 20
    assert all(two <= 20 * one for one, two in pairwise(sizes))


def test_a_workspace_for_each_core_is_kept() -> None:
    pool = WorkspacePool()
    taken = [pool.acquire() for _ in range(40)]
    assert len({id(one) for one in taken}) == 40, "no two threads share a workspace"
    for one in taken:
        pool.release(one)
    again = [pool.acquire() for _ in range(40)]
    assert len({id(one) for one in again} & {id(one) for one in taken}) == min(40, processors().usable)


def test_a_workspace_that_nobody_uses_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, now = WorkspacePool(), 100.0
    monkeypatch.setattr(workspaces_module.time, "monotonic", lambda: now)
    first, second = pool.acquire(), pool.acquire()
    pool.release(first)
    pool.release(second)
    now += workspaces_module.IDLE_SECONDS + 1
    assert pool.acquire() is second, "the workspace that was used last is warm"
    pool.release(second)
    assert pool.acquire() is second
    assert pool.acquire() is not first


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("smollm2")


@pytest.mark.model
@pytest.mark.slow
def test_ids_do_not_depend_on_the_size_of_the_caches(tokenizer: Tokenizer) -> None:
    """The caches grow while the same texts are encoded, alone and in many threads."""
    drawn = random.Random(7)
    words = ["".join(drawn.choices("abcdefghij éß日", k=drawn.randint(1, 40))) for _ in range(2000)]
    asked = [" ".join(drawn.choices(words, k=3000)) for _ in range(30)]
    wanted = [tokenizer.encode(text) for text in asked]
    for _ in range(3):
        assert [tokenizer.encode(text) for text in asked] == wanted
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(tokenizer.encode, asked * 3)) == wanted * 3
