"""Owners and access control lists of files on Windows: who else can change a file.

Windows prints the owner and the access control list of a file in the security descriptor definition language (SDDL):
"O:BAD:(A;;FA;;;SY)(A;;FR;;;WD)", for example. Source: Microsoft's documentation, "Security Descriptor String Format"
and "ACE Strings".
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from collections.abc import Iterator
from typing import Any

from pellucid.util.windows import library

# Rights to files and folders: names in SDDL, and bits (winnt.h).
_RIGHTS = {
    "GA": 0x1000_0000, "GX": 0x2000_0000, "GW": 0x4000_0000, "GR": 0x8000_0000, "FA": 0x1F_01FF, "FR": 0x12_0089,
    "FW": 0x12_0116, "FX": 0x12_00A0, "RC": 0x2_0000, "SD": 0x1_0000, "WD": 0x4_0000, "WO": 0x8_0000,
    "CC": 0x1, "DC": 0x2, "LC": 0x4, "SW": 0x8, "RP": 0x10, "WP": 0x20, "DT": 0x40, "LO": 0x80, "CR": 0x100,
}  # fmt: skip
# To delete a folder or a file in it, or to change its owner or its access control list.
REPLACE = _RIGHTS["GA"] | _RIGHTS["SD"] | _RIGHTS["DT"] | _RIGHTS["WD"] | _RIGHTS["WO"]
# To write to a file, or to create files in a folder.
CHANGE = REPLACE | _RIGHTS["GW"] | _RIGHTS["DC"] | _RIGHTS["LC"]

_INSTALLER = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"  # it owns the files of Windows
# The system and its administrators, who are for Windows what root is for other systems. Creator owner and owner rights
# are placeholders for the owner.
_TRUSTED = frozenset({"SY", "S-1-5-18", "BA", "S-1-5-32-544", "LA", "DA", "CO", "OW", _INSTALLER})
_NAMES = {"S-1-5-19": "LS", "S-1-5-20": "NS"}  # services that are users; SDDL prints their names
_EVERYONE = "WD"
_FILE, _OWNER, _LIST = 1, 0x1, 0x4  # SE_FILE_OBJECT, OWNER_SECURITY_INFORMATION, DACL_SECURITY_INFORMATION
_QUERY_TOKEN, _TOKEN_USER = 0x8, 1


def others_with(rights: int, sddl: str, user: str) -> Iterator[str]:
    """Security identifiers (SIDs) of others than ``user`` and the administrators who own the file or have ``rights``.

    ``rights`` are bits; a single right is enough. Entries that deny rights are not considered.
    """
    trusted = _TRUSTED | {user, _NAMES.get(user, user)}
    owner, _, entries = sddl.partition("D:")
    if owner.removeprefix("O:") not in trusted:
        yield owner.removeprefix("O:") or "unknown"
    flags, bracket, entries = entries.partition("(")
    if (
        not flags and not bracket
    ) or "NO_ACCESS_CONTROL" in flags:  # a file without a list is open to everyone
        yield _EVERYONE
        return
    for entry in _entries(bracket + entries):
        kind, inheritance, given, _, _, who = [*entry.split(";", 6), *[""] * 6][:6]
        applies = "IO" not in re.findall("..", inheritance)  # other entries only apply to files below
        denies = kind.endswith("D")
        if applies and not denies and who not in trusted and _bits(given) & rights:
            yield who or _EVERYONE


def _entries(text: str) -> Iterator[str]:
    """The entries of a list: "(A;;FA;;;SY)(A;;FR;;;WD)" has two. The condition of an entry may have brackets, too."""
    depth = begin = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "(" and depth == 1:
            begin = at + 1
        elif letter == ")" and depth == 0:
            yield text[begin:at]
    if depth:
        yield f"A;;GA;;;{_EVERYONE}"  # not understood


def _bits(rights: str) -> int:
    """The bits of rights: a number, or names of two letters. All bits if a name is unknown."""
    if re.fullmatch(r"0x[0-9a-fA-F]+|[0-9]+", rights):
        return int(rights, 0 if rights.startswith("0x") else 8 if rights.startswith("0") else 10)
    return functools.reduce(lambda bits, name: bits | _RIGHTS.get(name, -1), re.findall("..?", rights), 0)


def sddl_of_path(path: str) -> str:
    """Owner and access control list of a file or folder. Raises OSError."""
    return _sddl("GetNamedSecurityInfoW", ctypes.c_wchar_p(path))


def sddl_of_file(descriptor: int) -> str:
    """Owner and access control list of an open file. Raises OSError."""
    if sys.platform != "win32":
        raise OSError("this function exists on Windows only")
    import msvcrt

    return _sddl("GetSecurityInfo", ctypes.c_void_p(msvcrt.get_osfhandle(descriptor)))


def _sddl(function: str, file: Any) -> str:
    system, found, text = library("advapi32"), ctypes.c_void_p(), ctypes.c_wchar_p()
    what = ctypes.c_uint32(_OWNER | _LIST)
    code = getattr(system, function)(file, _FILE, what, None, None, None, None, ctypes.byref(found))
    if code:
        raise OSError(code, f"the owner and the access control list cannot be read (Windows error {code})")
    try:
        convert = system.ConvertSecurityDescriptorToStringSecurityDescriptorW
        if not convert(found, ctypes.c_uint32(1), what, ctypes.byref(text), None):
            raise OSError("the access control list cannot be read")
        return _taken(text)
    finally:
        library("kernel32").LocalFree(found)


@functools.cache
def user_sid() -> str:
    """Security identifier of the user of this process. Raises OSError."""
    system, kernel = library("advapi32"), library("kernel32")
    token, size, text = ctypes.c_void_p(), ctypes.c_uint32(0), ctypes.c_wchar_p()
    if not system.OpenProcessToken(ctypes.c_void_p(-1), ctypes.c_uint32(_QUERY_TOKEN), ctypes.byref(token)):
        raise OSError("the user of this process is not known")
    try:
        system.GetTokenInformation(
            token, _TOKEN_USER, None, 0, ctypes.byref(size)
        )  # fails, and sets the size
        buffer = ctypes.create_string_buffer(max(size.value, 8))
        if not system.GetTokenInformation(token, _TOKEN_USER, buffer, size, ctypes.byref(size)):
            raise OSError("the user of this process is not known")
        sid = ctypes.c_void_p.from_buffer(buffer)  # TOKEN_USER begins with the address of the SID
        if not system.ConvertSidToStringSidW(sid, ctypes.byref(text)):
            raise OSError("the user of this process is not known")
        return _taken(text)
    finally:
        kernel.CloseHandle(token)


def _taken(text: ctypes.c_wchar_p) -> str:
    """A copy of a text that the system allocated. Frees the text."""
    copy = text.value or ""
    library("kernel32").LocalFree(text)
    return copy
