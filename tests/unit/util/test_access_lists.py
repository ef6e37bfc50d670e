"""Access control lists of Windows, as its functions print them, and trusted files under these lists."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fresh import fresh

from pellucid.util import trusted_files, windows
from pellucid.util.windows import CHANGE, REPLACE, others_with, user_sid

if sys.platform != "linux":
    pytest.skip("finds the names of open files in /proc", allow_module_level=True)

USER, OTHER = (f"S-1-5-21-1004336348-1177238915-682003330-{number}" for number in (1001, 1002))
INSTALLER = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"

# From `(Get-Acl PATH).Sddl` and `icacls`, with the group left out.
DRIVE = f"O:{INSTALLER}D:PAI(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;OICI;0x1200a9;;;BU)(A;OICIIO;SDGXGWGR;;;AU)(A;;LC;;;AU)"
USERS = "O:SYD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;0x1200a9;;;BU)(A;OICI;0x1200a9;;;WD)"
PROFILE = f"O:SYD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;{USER})"
BELOW = f"O:{USER}D:(A;OICIID;FA;;;SY)(A;OICIID;FA;;;BA)(A;OICIID;FA;;;{USER})"
DATA_DRIVE = "O:BAD:(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;OICI;0x1301bf;;;AU)(A;OICI;0x1200a9;;;BU)"
PUBLIC = f"O:{USER}D:AI(A;OICIID;0x1301bf;;;IU)(A;OICIID;FA;;;{USER})(A;OICIID;FA;;;BA)"


@pytest.mark.parametrize(
    ("sddl", "rights", "others"),
    [
        (DRIVE, REPLACE, []),  # others may add folders to a drive, but cannot replace this user's folders
        (DRIVE, CHANGE, ["AU"]),
        (USERS, CHANGE, []),
        (PROFILE, CHANGE, []),
        (BELOW, CHANGE, []),
        (DATA_DRIVE, REPLACE, ["AU"]),
        (PUBLIC, CHANGE, ["IU"]),
        (BELOW.replace(f"O:{USER}", f"O:{OTHER}"), CHANGE, [OTHER]),
        (f"O:{USER}D:(A;;FR;;;WD)(A;;FW;;;{OTHER})", CHANGE, [OTHER]),
        (f"O:{USER}D:(A;;FW;;;{OTHER})", REPLACE, []),
        (f"O:{USER}D:(A;;GA;;;WD)", REPLACE, ["WD"]),
        (f"O:{USER}D:(A;;0x2;;;WD)(A;;02;;;BG)(A;;1048576;;;BU)", CHANGE, ["WD", "BG"]),
        (f"O:{USER}D:(A;;??;;;WD)", CHANGE, ["WD"]),  # an unknown right may be any right
        (f"O:{USER}D:(D;;FA;;;WD)(A;;FA;;;{USER})", CHANGE, []),  # forbids
        (f'O:{USER}D:(XA;;FA;;;WD;(@User.Title == "(a" && (Member_of {{SID(BA)}})))(A;;FW;;;BU)', CHANGE, ["WD"]),
        (f'O:{USER}D:(XA;;FR;;;WD;(@User.Title == ")"))(A;;FW;;;BU)', CHANGE, ["WD"]),
        (f"O:{USER}D:(XA;;FR;;;WD;((a) || (b)))(A;;FW;;;BU)", CHANGE, ["BU"]),
        (f"O:{USER}D:P", CHANGE, []),  # a list without entries allows nothing
        (f"O:{USER}", CHANGE, ["WD"]),  # no list allows everything
        (f"O:{USER}D:NO_ACCESS_CONTROL", CHANGE, ["WD"]),
        ("", CHANGE, ["unknown", "WD"]),
    ],
)  # fmt: skip
def test_who_else_can_change_a_file(sddl: str, rights: int, others: list[str]) -> None:
    assert list(others_with(rights, sddl, USER)) == others


def test_a_service_has_a_name_in_lists() -> None:
    assert list(others_with(CHANGE, "O:LSD:(A;;FA;;;LS)", "S-1-5-19")) == []


class Windows:
    """advapi32.dll and kernel32.dll for files with these lists. Counts the memory that it gives out."""

    def __init__(self, lists: Callable[[str], str]) -> None:
        self._lists, self._kept, self._texts = lists, dict[int, Any](), list[str]()
        self.closed = 0

    def _text(self, text: str, out: Any) -> int:
        buffer = ctypes.create_unicode_buffer(text)
        self._kept[ctypes.addressof(buffer)] = buffer
        out._obj.value = None
        ctypes.c_void_p.from_address(ctypes.addressof(out._obj)).value = ctypes.addressof(buffer)
        return 1

    def GetNamedSecurityInfoW(self, path: Any, kind: int, what: Any, *rest: Any) -> int:
        assert (kind, what.value) == (1, 5)
        if not (sddl := self._lists(path.value)):
            return 5
        return 1 - self._text(sddl, rest[-1])

    def GetSecurityInfo(self, handle: Any, kind: int, what: Any, *rest: Any) -> int:
        return self.GetNamedSecurityInfoW(ctypes.c_wchar_p(f"handle {handle.value}"), kind, what, *rest)

    def ConvertSecurityDescriptorToStringSecurityDescriptorW(
        self, descriptor: Any, revision: Any, what: Any, out: Any, length: Any
    ) -> int:
        return self._text(ctypes.wstring_at(descriptor.value), out)

    def OpenProcessToken(self, process: Any, access: Any, token: Any) -> int:
        token._obj.value = 0x7FFF_0000_0040
        return 1

    def GetTokenInformation(self, token: Any, kind: int, out: Any, size: Any, needed: Any) -> int:
        if out is None:
            needed._obj.value = 44
            return 0
        ctypes.c_void_p.from_buffer(out).value = ctypes.addressof(out) + 16
        return 1

    def ConvertSidToStringSidW(self, sid: Any, out: Any) -> int:
        assert sid.value
        return self._text(USER, out)

    def LocalFree(self, memory: Any) -> None:
        address = ctypes.c_void_p.from_address(ctypes.addressof(memory)).value
        if address is not None:
            del self._kept[address]

    def CloseHandle(self, handle: Any) -> None:
        self.closed += 1

    @property
    def leaks(self) -> int:
        return len(self._kept)


@pytest.fixture
def files() -> Any:
    """The module, in a process that has read no file."""
    return fresh(trusted_files)


@pytest.fixture
def on_windows(files: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str]], Windows]:
    """Lets trusted files be on Windows, with paths of POSIX."""

    def begin(lists: Callable[[str], str]) -> Windows:
        system = Windows(lists)
        monkeypatch.setattr(windows, "library", lambda name: system)
        return system

    user_sid.cache_clear()
    system = SimpleNamespace(**{name: value for name, value in vars(os).items() if name != "geteuid"})
    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(files, "os", system)  # without users of POSIX
    monkeypatch.setattr(
        windows, "sddl_of_file", lambda file: windows.sddl_of_path(os.readlink(f"/proc/self/fd/{file}"))
    )
    yield begin
    user_sid.cache_clear()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "home" / "kernels").mkdir(parents=True)
    return tmp_path / "home"


def usual(path: str) -> str:
    """A drive, the folder of profiles, a profile, and the folders below it."""
    return {0: DRIVE, 1: USERS, 2: PROFILE}.get(len(Path(path).parts) - 1, BELOW)


def test_files_below_the_profile_are_trusted(files: Any, home: Path, on_windows: Any) -> None:
    system = on_windows(usual)
    files.TrustedFolder("kernels").write("file", b"content")
    assert files.TrustedFolder("kernels").read("file") == b"content"
    assert (home / "kernels" / "file").exists()
    assert (system.leaks, system.closed) == (0, 1)


REMEDY = r"\({}\): remove their rights \(icacls\), or set PELLUCID_HOME"


@pytest.mark.parametrize("part", ["home", "home/kernels"])
def test_a_home_that_others_can_change_is_not_used(files: Any, home: Path, part: str, on_windows: Any) -> None:
    on_windows(lambda path: DATA_DRIVE if Path(path) == home.parent / part else usual(path))
    with pytest.warns(RuntimeWarning, match=REMEDY.format("AU")):
        folder = files.TrustedFolder("kernels")
    assert folder.path == home.parent / "cache" / "pellucid" / "kernels"


def test_a_folder_above_that_others_can_replace_is_not_used(files: Any, home: Path, on_windows: Any) -> None:
    on_windows(lambda path: DATA_DRIVE if Path(path) == home.parent else usual(path))
    (home.parent / "cache" / "pellucid").mkdir(parents=True)  # below the same folder
    with pytest.warns(RuntimeWarning, match=REMEDY.format("AU")):
        assert files.TrustedFolder("kernels").path is None


def test_others_may_add_folders_beside_the_home(files: Any, home: Path, on_windows: Any) -> None:
    on_windows(lambda path: DRIVE if Path(path) == home.parent else usual(path))
    files.TrustedFolder("kernels").write("file", b"content")
    assert files.TrustedFolder("kernels").read("file") == b"content"


def test_a_file_that_others_can_change_is_made_again(files: Any, home: Path, on_windows: Any) -> None:
    on_windows(usual)
    files.TrustedFolder("kernels").write("file", b"content")
    on_windows(lambda path: PUBLIC if Path(path).name == "file" else usual(path))
    folder = files.TrustedFolder("kernels")
    with pytest.warns(RuntimeWarning, match=REMEDY.format("IU")):
        assert folder.read("file") is None


def test_a_list_that_cannot_be_read_is_not_trusted(files: Any, home: Path, on_windows: Any) -> None:
    system = on_windows(lambda path: "")
    (home.parent / "cache" / "pellucid").mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="Windows error 5"):
        assert files.TrustedFolder("kernels").path is None
    assert system.leaks == 0


def test_other_systems_have_no_lists() -> None:
    with pytest.raises(OSError, match="Windows only"):
        windows.sddl_of_file(0)
