"""The default context fits into the free memory: a model starts with a shorter context and says so."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import PROGRAM

import pellucid
from pellucid import loading
from pellucid.engine.cache_manager import MIN_CONTEXT, STEP, FreeMemory, ModelMemory, free_memory
from pellucid.errors import CacheFull
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.load_options import LoadOptions
from pellucid.testing import random_model

STATED = 16_384


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    return Path(random_model("llama", folder / "m.gguf", vocabulary=320, context=STATED, layers=2))


@pytest.fixture
def memory(path: Path) -> ModelMemory:
    opened = loading.open_model(path)
    try:
        limits = loading.step_limits(opened.model.spec, STATED)
        return ModelMemory(opened.checkpoint, opened.plan(LoadOptions()), limits, 2)
    finally:
        opened.checkpoint.close()


def test_the_longest_context_that_fits(memory: ModelMemory) -> None:
    whole = memory.context_bytes(STATED)
    assert memory.longest_context(STATED, whole) == STATED
    for room in (whole - 1, whole // 2, whole // 5):
        context = memory.longest_context(STATED, room)
        assert context % STEP == 0
        assert memory.context_bytes(context) <= room < memory.context_bytes(context + STEP)
    for room in (0, -1, memory.context_bytes(MIN_CONTEXT)):
        assert memory.longest_context(STATED, room) == MIN_CONTEXT
    assert memory.longest_context(100, 0) == 100  # a file may state a shorter context


def test_the_bytes_of_a_model(path: Path) -> None:
    """The estimate equals what a loaded model takes: its weights, its pages and its buffers."""
    with pellucid.load(path, context=STATED, threads=2) as llm:
        own = ModelMemory(llm.checkpoint, llm.plan, llm.runner.limits, 2)
        kv, arrays = llm.runner.cache.kv, [llm.runner.array(buffer) for buffer in llm.plan.buffers]
        page = sum(group.page_bytes for group in kv.groups)
        assert own.weights >= llm.weight_bytes
        assert own.fixed - own.weights >= sum(array.nbytes for array in arrays)
        assert own.context_bytes(2 * PAGE) - own.context_bytes(PAGE) >= page
        assert own.context_bytes(PAGE, 5) == own.context_bytes(PAGE) + 4 * page


def test_the_room_for_contexts(memory: ModelMemory) -> None:
    assert memory.room(FreeMemory(None, None)) is None
    both = memory.room(FreeMemory(4 << 30, 4 << 30))
    only_memory, only_space = memory.room(FreeMemory(4 << 30, None)), memory.room(FreeMemory(None, 4 << 30))
    assert only_memory is not None
    assert only_space is not None
    assert both == min(only_memory, only_space)
    assert memory.room(FreeMemory(0, None)) == -memory.fixed


def test_a_model_starts_with_a_shorter_context_and_says_so(
    path: Path, memory: ModelMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = int((memory.fixed + memory.context_bytes(5000)) / 0.9)
    monkeypatch.setattr(loading, "free_memory", lambda: FreeMemory(free, None))
    said = rf"the context is 4,\d+ instead of 16,384 tokens, because {free / 1e9:.2f} GB of memory are free"
    with pytest.warns(UserWarning, match=said):
        llm = pellucid.load(path, threads=2)
    with llm:
        assert 4000 < llm.context < 5000
        assert llm.inputs.context == llm.context
        pool = sum(one.page_bytes * one.count for one in llm.runner.cache.kv.pools)
        room = memory.room(FreeMemory(free, None))
        assert room is not None
        sequences = llm.runner.limits.sequences
        assert pool <= max(room, memory.context_bytes(llm.context, sequences)), "more requests take no more"
        assert len(llm.generate("to see", temperature=0, max_new_tokens=4, ignore_eos=True).ids) == 4
        with pytest.raises(pellucid.errors.ContextOverflow):
            llm.generate([5] * 5000)
    with pellucid.load(path, threads=2, context=STATED) as llm:  # no warning: the caller decides
        assert llm.context == STATED


def test_a_limit_of_address_space_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "free_memory", lambda: FreeMemory(64 << 30, 300 << 20))
    with (
        pytest.warns(UserWarning, match=r"is 512 instead of .* 0\.31 GB of address space \(ulimit\) are free"),
        pellucid.load(path, threads=2) as llm,
    ):
        assert llm.context == MIN_CONTEXT


def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_loaded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "free_memory", lambda: FreeMemory(1000, None))
    monkeypatch.setattr(loading, "ModelRunner", None)
    with pytest.raises(CacheFull, match=r"needs at least 0\.\d\d GB, and 0\.00 GB of memory are free: free memory"):
        pellucid.load(path)


def test_memory_that_ends_while_a_model_is_loaded_is_an_error_of_one_line(path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    with pytest.raises(CacheFull, match="the memory is too small to load it: free memory, lower the context"):
        pellucid.load(path, make=full)  # type: ignore[arg-type]


def test_this_machine_has_free_memory() -> None:
    memory, space = free_memory()
    assert memory is None or memory > 1 << 20
    assert (space is None) == (resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits the memory on Linux only")
def test_a_process_with_little_memory(tmp_path: Path) -> None:
    """The keys and values of the stated context take 2 GB."""
    path = random_model(
        "llama",
        tmp_path / "m.gguf",
        vocabulary=320,
        context=1 << 17,
        layers=8,
        width=512,
        heads=8,
        kv_heads=8,
        head_dim=64,
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1_500 << 20, 1_500 << 20))

    command = [*PROGRAM[:1], *PROGRAM[3:], "run", str(path), "to see", "--max-new-tokens", "4", "--threads", "2"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "instead of 131,072 tokens, because" in done.stderr
    assert "of address space (ulimit) are free" in done.stderr
    context = int(done.stderr.partition("the context is ")[2].partition(" ")[0].replace(",", ""))
    assert 1000 < context < 1 << 17
