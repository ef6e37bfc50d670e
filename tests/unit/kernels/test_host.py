"""LLVM's description of the machine is cached. The cache key covers the machine and the LLVM version."""

from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.kernels.core import host as module
from pellucid.kernels.core import isa
from pellucid.kernels.core.host import Host

CPUINFO = """processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model		: 207
model name	: A processor
stepping	: 2
microcode	: 0x21
cpu MHz		: {speed}
flags		: fpu avx2 {flags}
power management:

processor	: 1
flags		: none
"""
FOUND = Host("x86_64-unknown-linux-gnu", "sapphirerapids", frozenset({"avx2", "fma"}), frozenset({"sse4a"}))


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake machine. Its LLVM answers FOUND once."""
    answers = [FOUND]
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO.format(speed=1, flags=""))
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "WITHOUT_LLVM", True)
    monkeypatch.setattr(module, "_CPUINFO", path)
    monkeypatch.setattr(module, "_ask_llvm", answers.pop)
    return path


def asked_again() -> bool:
    """True if LLVM is asked a second time."""
    try:
        assert module.host.__wrapped__() == FOUND
    except IndexError:
        return True
    return False


def test_llvm_is_asked_once(cpuinfo: Path) -> None:
    assert module.host.__wrapped__() == FOUND
    assert not asked_again()
    # The microcode version is not part of the key: its changes show in the flags.
    cpuinfo.write_text(CPUINFO.format(speed=2, flags="").replace("0x21", "0x22"))
    assert not asked_again()


def test_another_processor_or_another_llvm_is_asked(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.host.__wrapped__() == FOUND
    before = cpuinfo.read_text()
    for old, new in (
        ("avx2 ", "avx2 amx_int8 "),
        ("207", "208"),
        ("stepping	: 2", "stepping	: 3"),
    ):
        cpuinfo.write_text(before.replace(old, new, 1))
        assert asked_again()
    cpuinfo.write_text(before)
    assert not asked_again()
    monkeypatch.setattr(module, "package_version", lambda _: "another")
    assert asked_again()


@pytest.mark.parametrize("content", ["", "processor\t: 0\nmodel name\t: who knows\n", None])
def test_nothing_is_kept_of_a_processor_that_linux_does_not_describe(
    cpuinfo: Path, content: str | None
) -> None:
    cpuinfo.unlink() if content is None else cpuinfo.write_text(content)
    assert module.host.__wrapped__() == FOUND
    assert asked_again()


def test_without_a_home_llvm_is_asked(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_HOME", "/etc/passwd")
    assert module.host.__wrapped__() == FOUND


def test_what_is_kept_is_what_llvm_says() -> None:
    assert module.host() == module._ask_llvm()
    assert isa.target().cpu == module._ask_llvm().cpu
