"""The cache of compiled kernels is never stale, is safe against other processes, and never trusts damaged files."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from support.fresh import fresh
from support.kernels import Batch, declared
from support.processes import environment, python

from pellucid.errors import KernelError
from pellucid.kernels.core import background, isa, library, objects
from pellucid.kernels.core import definitions as definitions_module
from pellucid.kernels.core.background import BackgroundCompiler
from pellucid.kernels.core.definitions import PACKAGE, KernelKey, definition
from pellucid.kernels.core.definitions import kernel as declare
from pellucid.kernels.core.library import Library
from pellucid.kernels.core.objects import environment as environment_hash
from pellucid.kernels.ops.elementwise import AddRecord
from pellucid.util import trusted_files
from pellucid.util.trusted_files import DIGEST_BYTES, TrustedFolder

ADD = KernelKey("add")


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path))
    monkeypatch.setenv("PELLUCID_COMPILE", "1")
    return tmp_path


def adds(shelf: Library) -> bool:
    """True if the kernel from a library computes the right result."""
    x = np.arange(16, dtype=np.float32)
    words = AddRecord.pack(
        {"a": x.ctypes.data, "b": x.ctypes.data, "factor": 1.0, "width": 16, "out": x.ctypes.data, "rows": 0}
    )
    record, batch = np.array(words, np.int64), Batch([1])
    shelf.function(ADD)(record.ctypes.data, batch.record.ctypes.data, 0, 1)
    return bool((x == 2 * np.arange(16)).all())


def stored() -> Path:
    return library.cache_folder() / library.file_name(ADD)


def folder() -> TrustedFolder:
    return TrustedFolder(f"kernels/{environment_hash()}")


def test_a_kernel_is_compiled_once_and_then_loaded(empty_home: Path) -> None:
    told: list[tuple[int, int, str]] = []
    first, second = Library(), Library()
    first.load([ADD], lambda *what: told.append(what))
    assert told == [(0, 1, "add"), (1, 1, "")]
    second.load([ADD], lambda *what: told.append(what))
    assert len(told) == 2
    assert adds(first)
    assert adds(second)


DAMAGES = ["empty", "truncated", "one bit", "another file", "no hash", "plain hash", "hash of another name"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_compiled_again(damage: str, empty_home: Path) -> None:
    """Also if the damaged content has a matching hash: LLVM would end the process when it loads the object."""
    Library().load([ADD, KernelKey("pick")])
    whole = stored().read_bytes()
    garbage = whole[DIGEST_BYTES : DIGEST_BYTES + 200] + bytes(2000)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    files = {
        "empty": b"",
        "truncated": whole[:-100],
        "one bit": bytes(flipped),
        "another file": b"\x7fELF" + bytes(500),
        "no hash": whole[DIGEST_BYTES:],
        "plain hash": hashlib.sha256(garbage).digest() + garbage,
        "hash of another name": stored().with_name(library.file_name(KernelKey("pick"))).read_bytes(),
    }
    stored().write_bytes(files[damage])
    assert folder().read(stored().name) is None
    assert adds(Library())
    assert folder().read(stored().name) is not None


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x7fELF" + bytes(100)], ids=repr)
def test_what_cannot_be_linked_is_compiled_again(content: bytes, empty_home: Path) -> None:
    Library().load([ADD])
    folder().write(stored().name, content)
    assert adds(Library())
    assert folder().read(stored().name) != content


def test_an_object_that_the_linker_does_not_know_is_an_error(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates an object of a newer LLVM with unknown relocations."""
    key = KernelKey("pick")  # has relocations
    code = bytearray(library.compile_kernel(key))
    (start,), (count,) = struct.unpack_from("<Q", code, 40), struct.unpack_from("<H", code, 60)
    (table, *_) = (at for at in range(start, start + 64 * count, 64) if struct.unpack_from("<I", code, at + 4) == (4,))
    (first,) = struct.unpack_from("<Q", code, table + 24)
    struct.pack_into("<I", code, first + 8, 250)
    monkeypatch.setattr(library, "compile_kernel", lambda key: bytes(code))
    with pytest.raises(KernelError, match="pick: the compiled object cannot be linked: relocations of type"):
        Library().load([key])
    assert not list(empty_home.rglob("*.o"))


def test_an_object_without_its_function_is_compiled_again(empty_home: Path) -> None:
    Library().load([ADD])
    whole = folder().read(stored().name)
    assert whole is not None
    other = whole.replace(b"\0kernel\0", b"\0cernel\0")
    assert other != whole
    folder().write(stored().name, other)
    assert adds(Library())
    assert folder().read(stored().name) == whole


@pytest.mark.slow
def test_processes_that_compile_at_once_do_no_harm(empty_home: Path) -> None:
    code = "from unit.kernels import test_library as t; assert t.adds(t.Library())"
    processes = [subprocess.Popen(python(code), env=environment()) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert [path.name for path in stored().parent.iterdir()] == [stored().name]


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kernels' sources; the hashes are computed from the copy."""
    folder = tmp_path / "kernels"
    shutil.copytree(definitions_module.ROOT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(definitions_module, "ROOT", folder)
    return folder


def module_of(name: str) -> str:
    return definition(name).module


def sources(name: str) -> str:
    """The hash of a kernel's sources, which are read now."""
    module = module_of(name)
    return str(fresh(objects).sources(module))


def files_of(name: str) -> set[str]:
    """The modules whose files the hash of a kernel's sources reads."""
    read, actual = set[str](), Path.read_bytes

    def watched(path: Path) -> bytes:
        content = actual(path)
        parts = path.relative_to(definitions_module.ROOT).with_suffix("").parts
        read.add(".".join((PACKAGE, *parts)).removesuffix(".__init__"))
        return content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", watched)
        sources(name)
    return read


def environment_now() -> str:
    return objects.environment()


def test_the_hash_of_sources_is_the_same_wherever_they_are(copied: Path) -> None:
    assert sources("add") == objects.sources(module_of("add"))


@pytest.mark.parametrize(
    ("name", "imported", "others"),
    [
        ("attention", ["attention/walk.py", "attention/inner_loops.py", "matmul/quantize.py", "simd/dot.py"], "text"),
        ("text.merge", ["text/merge.py", "text/words.py", "text/pieces.py"], "attention"),
        (
            "matmul_int8",
            ["matmul/int8.py", "matmul/int8_sums.py", "matmul/many_tokens.py", "matmul/packing.py", "simd/dot.py"],
            "logits",
        ),
    ],
)
def test_the_hash_of_sources_covers_what_a_kernel_imports_and_nothing_else(
    copied: Path, name: str, imported: list[str], others: str
) -> None:
    seen = {sources(name)}
    compiler = ["core/compiler.py", "core/isa.py", "core/record.py"]
    compiler += [f"simd/{name}.py" for name in ("__init__", "arithmetic", "emitter", "memory")]
    for source in (copied / one for one in (*imported, *compiler)):
        source.write_text(source.read_text() + "\n")
        seen.add(sources(name))
    assert len(seen) == 1 + len(imported) + len(compiler)
    before = sources(name)
    for source in (copied / others).glob("*.py"):
        source.write_text(source.read_text() + "# a comment\n")
    assert sources(name) == before


@pytest.mark.parametrize("name", ["attention", "logits.top", "matmul_int8", "norm", "text.merge"])
def test_the_hash_of_sources_covers_every_module_that_is_loaded_for_a_kernel(name: str) -> None:
    """The hash reads every module that Python loads when it imports a kernel's module."""
    code = f"""
import importlib, sys
sys.modules["pellucid.kernels"] = importlib.import_module("pellucid.kernels")
importlib.import_module({module_of(name)!r})
print(*[name for name in sys.modules if name.startswith("pellucid.kernels.")])
"""
    loaded = set(subprocess.run(python(code), env=environment(), capture_output=True, text=True).stdout.split())
    read = files_of(name)
    assert module_of(name) in loaded
    assert loaded <= read | {one.rpartition(".")[0] for one in read}


def test_the_environment_counts_what_the_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {environment_now()}
    for name, value in (("NUMBA_OPT", "1"), ("NUMBA_OPT", "2"), ("PELLUCID_ISA", "portable")):
        monkeypatch.setenv(name, value)
        seen.add(environment_now())
    assert len(seen) == 4 or (len(seen) == 3 and len(isa.KNOWN) == 1)


@pytest.mark.parametrize("change", [{"system": "another"}, {"variant": isa.Variant(frozenset({"another"}))}])
def test_the_environment_counts_the_target(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before, here = environment_now(), isa.target()
    monkeypatch.setattr(isa, "target", lambda: replace(here, **change))
    assert environment_now() != before


def test_what_links_and_what_asks_the_machine_is_no_source_of_a_kernel() -> None:
    read = files_of("add")
    assert f"{PACKAGE}.core.isa" in read
    assert not read & {f"{PACKAGE}.core.{name}" for name in ("host", "linker", "elf", "library")}


def test_an_object_is_the_same_whatever_was_compiled_before(empty_home: Path) -> None:
    alone = subprocess.run(
        python(
            "import sys; from pellucid.kernels.core.library import compile_kernel; "
            "from pellucid.kernels.core.definitions import KernelKey; "
            "sys.stdout.buffer.write(compile_kernel(KernelKey('pick')))"
        ),
        env=environment(),
        capture_output=True,
        check=True,
    ).stdout
    library.compile_kernel(KernelKey("roof.read"))
    assert library.compile_kernel(KernelKey("pick")) == alone
    assert b"_ZN" not in alone, "Numba's names contain a counter"


def test_file_names_tell_parameters_apart() -> None:
    keys = [KernelKey("quantize", activation_bits=bits) for bits in (8, 16)]
    assert len({key.file_stem for key in keys}) == 2
    assert all(key.file_stem.startswith("quantize-") for key in keys)


def test_two_kernels_of_one_name_are_an_error() -> None:
    definition("add")
    with pytest.raises(
        KernelError, match=r"two kernels are called add: in pellucid/kernels/ops/elementwise.py and .*test_library.py"
    ):
        declare("add")(lambda simd: None)


def test_a_kernel_that_does_not_compile_says_which(monkeypatch: pytest.MonkeyPatch, empty_home: Path) -> None:
    def build(simd, nonsense):  # type: ignore[no-untyped-def]
        @simd.jit
        def body(record, step, thread, threads):  # type: ignore[no-untyped-def]
            return no_such_thing(record)  # noqa: F821

        return body

    name = declared(build)
    with pytest.raises(KernelError, match=f"{name} 7 did not compile"):
        Library().load([KernelKey(name, nonsense=7)])
    assert not list(empty_home.rglob(f"{name}*"))


def test_a_cache_that_cannot_be_written_is_said_and_does_no_other_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("home", "cache/pellucid"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "kernels").write_text("a file where the folder should be")
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "TrustedFolder", fresh(trusted_files).TrustedFolder)
    keys = [KernelKey("pick"), KernelKey("loop.lead"), KernelKey("loop.work")]
    with pytest.warns(RuntimeWarning, match="made for this process only") as warned:
        assert all(Library().load(keys).values())
    assert len(warned) == 1


@pytest.mark.parametrize("keeps", [True, False])
def test_kernels_are_compiled_in_the_background(empty_home: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool) -> None:
    """Kernels compile in a process that fills the folder, or without a folder in a thread of this process."""
    if not keeps:
        monkeypatch.setattr(background, "can_cache", lambda: False)
    shelf = Library()
    compiler = BackgroundCompiler(shelf)
    assert not compiler.ready([ADD], compiles=False)
    assert not compiler.threads
    assert not compiler.ready([ADD], compiles=True)
    (thread,) = compiler.threads.values()
    compiler.ready([ADD], compiles=True)
    assert list(compiler.threads.values()) == [thread]
    thread.join(120)
    assert compiler.ready([ADD], compiles=True)
    assert stored().exists() == keeps
    monkeypatch.setattr(library, "compile_kernel", lambda key: pytest.fail("it is compiled again"))
    assert adds(shelf)


def test_without_a_compiler_no_process_is_started(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "can_compile", lambda: False)
    compiler = BackgroundCompiler(Library())
    assert not compiler.ready([ADD], compiles=True)
    assert not compiler.threads


def test_a_kernel_that_does_not_compile_in_the_background_is_absent(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(key: KernelKey) -> bytes:
        raise KernelError(f"{key} does not compile")

    monkeypatch.setattr(library, "compile_kernel", fails)
    monkeypatch.setattr(background, "can_cache", lambda: False)
    compiler = BackgroundCompiler(Library())
    assert not compiler.ready([ADD], compiles=True)
    next(iter(compiler.threads.values())).join(60)
    assert not compiler.ready([ADD], compiles=True)
    assert len(compiler.threads) == 1


KEYS = [ADD, KernelKey("pick"), KernelKey("roof.read")]


@pytest.fixture
def team(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that compile in parallel, even for small kernels. This process compiles no kernel itself."""
    made: list[subprocess.Popen[bytes]] = []
    start = background.start_process

    def start_process(nice: int, *, answers: bool) -> subprocess.Popen[bytes] | None:
        made.append(start(nice, answers=answers))
        return made[-1]

    def fails(key: KernelKey) -> bytes:
        raise KernelError(f"{key} does not compile")

    monkeypatch.setattr(background, "MIN_SOURCE_BYTES", 0)
    monkeypatch.setattr(background, "start_process", start_process)
    monkeypatch.setattr(background, "shared", Library)
    monkeypatch.setattr(library, "compile_kernel", fails)
    return made


def test_kernels_are_compiled_in_parallel(team: list[subprocess.Popen[bytes]]) -> None:
    told: list[tuple[int, int, str]] = []
    background.compile_in_parallel([*KEYS, ADD], 2, None, lambda *what: told.append(what))
    assert Library().is_cached(KEYS)
    assert adds(Library())
    assert None not in [one.returncode for one in team]
    assert [done for done, _, _ in told] == [0, 1, 2, 3]
    longest = max(KEYS, key=lambda key: objects.source_bytes(definition(key.name).module))
    assert told[0] == (0, 3, str(longest))
    assert told[-1] == (3, 3, "")
    background.compile_in_parallel(KEYS, 2, None)
    assert len(team) == 2, "all are cached"


@pytest.mark.parametrize(
    "change", ["one process", "one kernel", "little memory", "short kernels", "no folder", "no Python", "no compiler"]
)
def test_what_is_compiled_alone(
    change: str, team: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "short kernels":
        monkeypatch.setattr(background, "MIN_SOURCE_BYTES", 1 << 30)
    elif change == "no folder":
        monkeypatch.setattr(background, "can_cache", lambda: False)
    elif change == "no compiler":
        monkeypatch.setattr(background, "can_compile", lambda: False)
    elif change == "no Python":
        monkeypatch.setattr(sys, "executable", "")
    background.compile_in_parallel(
        KEYS[:1] if change == "one kernel" else KEYS,
        1 if change == "one process" else 2,
        3 * background.PROCESS_BYTES if change == "little memory" else None,
    )
    assert not any(team)
    assert not Library().is_cached(KEYS[:1])


def test_a_process_that_ends_leaves_the_rest_to_the_others(
    team: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process gets a kernel that only the test process knows, and ends with an error."""
    unknown = KernelKey(declared(definition("roof.read").build))
    background.compile_in_parallel([unknown, *KEYS], 2, None)
    shelf = Library()
    assert shelf.is_cached(KEYS)
    assert not shelf.is_cached([unknown])
    assert 1 in [one.returncode for one in team]


PROCESSES = {
    "another program": "import time; time.sleep(60)",
    "a program that ends": "print('hello')",
    "nothing is kept": "print('hello\\nready', flush=True)\nfor line in open(0): print('not cached', flush=True)",
}


@pytest.mark.parametrize("program", PROCESSES)
def test_processes_that_compile_nothing_are_soon_given_up(
    program: str, team: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "BOOT", PROCESSES[program])
    monkeypatch.setattr(background, "STARTUP_SECONDS", 2.0)
    told: list[tuple[int, int, str]] = []
    background.compile_in_parallel(KEYS, 2, None, lambda *what: told.append(what))
    assert len(told) == 1
    assert None not in [one.returncode for one in team]
    assert not Library().is_cached(KEYS[:1])


@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupt_ends_the_processes(at: int, team: list[subprocess.Popen[bytes]]) -> None:
    before = threading.enumerate()

    def interrupt(done: int, total: int, label: str) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        background.compile_in_parallel(KEYS, 2, None, interrupt)
    assert None not in [one.returncode for one in team]
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(10)
            assert not thread.is_alive()
