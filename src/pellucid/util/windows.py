"""Calls of the Windows API through ctypes, and the owners and access lists of files. They fail with an OSError
elsewhere."""

from __future__ import annotations

import ctypes
import functools
import re
import struct
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

# Calls of the Windows API, through ctypes. They fail with an OSError on other systems. Structures are read with the
# layout of 64-bit Windows. Source: winnt.h, sysinfoapi.h and psapi.h of the Windows SDK.

CORE, NODE = 0, 1  # LOGICAL_PROCESSOR_RELATIONSHIP: RelationProcessorCore, RelationNumaNode
_RELATION = struct.Struct("<II")  # Relationship, Size
_CORE = struct.Struct("<BB20xH")  # Flags, EfficiencyClass, Reserved, GroupCount
_NODE = struct.Struct("<I18xH")  # NodeNumber, Reserved, GroupCount
_AFFINITY = struct.Struct("<QH6x")  # Mask, Group, Reserved
_GROUP_BITS = 64

# Information classes of job objects.
_EXTENDED_LIMITS, _CPU_RATE, _MEMORY_USAGE = 9, 15, 28
_KILL_ON_CLOSE, _DIE_ON_ERROR, _PROCESS_MEMORY, _JOB_MEMORY = 0x2000, 0x400, 0x100, 0x200
_POWER_THROTTLING = 4  # PROCESS_INFORMATION_CLASS: ProcessPowerThrottling
_BELOW_NORMAL = -1  # THREAD_PRIORITY_BELOW_NORMAL
_TERMINATE, _SET_QUOTA, _QUERY = 0x1, 0x100, 0x1000  # rights of a handle to a process
_RATE_ON, _RATE_HARD, _RATE_RANGE = 0x1, 0x4, 0x10


class Relation(NamedTuple):
    """A core or a NUMA node: its efficiency class or its number, and its logical processors."""

    value: int
    cpus: frozenset[int]


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX. ``free_commit`` is the memory that this process can still allocate, in RAM and page file."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("size", "load")),
        *((name, ctypes.c_uint64) for name in ("total", "free", "commit", "free_commit")),
        *((name, ctypes.c_uint64) for name in ("virtual", "free_virtual", "free_extended")),
    ]


class JobLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION. Times are in units of 100 ns."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("process_time", "job_time")),
        ("flags", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("min_working_set", "max_working_set")),
        ("processes", ctypes.c_uint32),
        ("affinity", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("priority", "scheduling")),
        ("io", ctypes.c_uint64 * 6),
        *((name, ctypes.c_uint64) for name in ("process_memory", "job_memory")),
        *((name, ctypes.c_uint64) for name in ("peak_process_memory", "peak_job_memory")),
    ]


class ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS. ``commit`` is the memory that the process has allocated."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("size", "faults")),
        *((name, ctypes.c_uint64) for name in ("peak_working_set", "working_set", "peak_paged", "paged")),
        *((name, ctypes.c_uint64) for name in ("peak_nonpaged", "nonpaged", "commit", "peak_commit")),
    ]


@functools.cache
def library(name: str) -> Any:
    """A system library, such as "kernel32". Raises OSError on another system."""
    if sys.platform != "win32":
        raise OSError("this function exists on Windows only")
    return ctypes.WinDLL(name, use_last_error=True)


def error() -> OSError:
    """The error of the last call of the calling thread."""
    if sys.platform != "win32":
        return OSError("this function exists on Windows only")
    return ctypes.WinError(ctypes.get_last_error())


def relations(kind: int) -> tuple[Relation, ...]:
    """The cores (``CORE``) or the NUMA nodes (``NODE``) of the machine; empty if Windows does not report them."""
    call, size = library("kernel32").GetLogicalProcessorInformationEx, ctypes.c_uint32(0)
    call(ctypes.c_int(kind), None, ctypes.byref(size))  # fails, and sets the size
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    if not call(ctypes.c_int(kind), buffer, ctypes.byref(size)):
        return ()
    return tuple(_relations(buffer.raw[: size.value]))


def _relations(records: bytes) -> Iterator[Relation]:
    """Read SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX records."""
    at = 0
    while at + _RELATION.size < len(records):
        kind, size = _RELATION.unpack_from(records, at)
        body = at + _RELATION.size
        value, groups = _CORE.unpack_from(records, body)[1:] if kind == CORE else _NODE.unpack_from(records, body)
        begin, cpus = body + _CORE.size, set[int]()
        for group in range(groups or 1):  # a node's count is 0 before Windows Server 2022
            mask, number = _AFFINITY.unpack_from(records, begin + group * _AFFINITY.size)
            cpus.update(number * _GROUP_BITS + bit for bit in range(_GROUP_BITS) if mask >> bit & 1)
        if kind in (CORE, NODE):
            yield Relation(value, frozenset(cpus))
        at += max(size, _RELATION.size)


def allowed_cpus(machine: frozenset[int]) -> frozenset[int]:
    """The logical processors of ``machine`` that this process may use."""
    system = library("kernel32")
    here = ctypes.c_void_p(-1)  # GetCurrentProcess()
    groups, count = (ctypes.c_uint16 * 64)(), ctypes.c_uint16(64)
    if not system.GetProcessGroupAffinity(here, ctypes.byref(count), groups):
        return machine
    mine = set(groups[: count.value])
    allowed = frozenset(cpu for cpu in machine if cpu // _GROUP_BITS in mine)
    mask, all_bits = ctypes.c_uint64(0), ctypes.c_uint64(0)
    if len(mine) == 1 and system.GetProcessAffinityMask(here, ctypes.byref(mask), ctypes.byref(all_bits)):
        allowed = frozenset(cpu for cpu in allowed if mask.value >> cpu % _GROUP_BITS & 1)
    return allowed or machine


def memory_status() -> MemoryStatus | None:
    """The memory of the machine; None if Windows does not report it."""
    status = MemoryStatus(size=ctypes.sizeof(MemoryStatus))
    return status if library("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)) else None


def allocated_bytes(process: Any = None) -> int | None:
    """Bytes of memory that a process has allocated; None if Windows does not say. ``process`` is a handle.

    By default the memory of this process.
    """
    found = ProcessMemory(size=ctypes.sizeof(ProcessMemory))
    handle = ctypes.c_void_p(-1) if process is None else process
    call = library("kernel32").K32GetProcessMemoryInfo
    return int(found.commit) if call(handle, ctypes.byref(found), ctypes.c_uint32(found.size)) else None


def lower_priority() -> None:
    """Lower the priority of the calling thread. Source: processthreadsapi.h."""
    system = library("kernel32")
    system.GetCurrentThread.restype = ctypes.c_void_p
    system.SetThreadPriority(ctypes.c_void_p(system.GetCurrentThread()), _BELOW_NORMAL)


def prevent_throttling() -> None:
    """Let Windows run this process at full speed on the fast cores, also while its window is in the background.

    Source: "SetProcessInformation" (PROCESS_POWER_THROTTLING_STATE) in Microsoft's documentation.
    """
    version, execution_speed, off = 1, 0x1, 0x0
    state = (ctypes.c_uint32 * 3)(version, execution_speed, off)
    call = library("kernel32").SetProcessInformation
    call(ctypes.c_void_p(-1), _POWER_THROTTLING, ctypes.byref(state), ctypes.c_uint32(ctypes.sizeof(state)))


class JobObject:
    """A job object with one process, given by its id. The system ends the process when the job is closed.

    It also does so when this process ends. Source: "Job Objects" in Microsoft's documentation. Raises OSError: the
    process has ended, or the system refuses.
    """

    def __init__(self, process: int) -> None:
        self._system = library("kernel32")
        self._limits = JobLimits(flags=_KILL_ON_CLOSE | _DIE_ON_ERROR)
        self._job = self._handle(self._system.CreateJobObjectW, None, None)
        try:
            rights = ctypes.c_uint32(_TERMINATE | _SET_QUOTA | _QUERY)
            self._process = self._handle(self._system.OpenProcess, rights, 0, ctypes.c_uint32(process))
        except OSError:
            self._system.CloseHandle(self._job)
            raise
        try:
            self._set()
            if not self._system.AssignProcessToJobObject(self._job, self._process):
                raise error()
        except OSError:
            self.close()
            raise

    def _handle(self, function: Any, *arguments: Any) -> ctypes.c_void_p:
        function.restype = ctypes.c_void_p
        if not (handle := function(*arguments)):
            raise error()
        return ctypes.c_void_p(handle)

    def limit(self, nbytes: int) -> None:
        """Limit the memory that the process may allocate. Raises OSError."""
        if (self._limits.process_memory, self._limits.flags & _PROCESS_MEMORY) != (nbytes, _PROCESS_MEMORY):
            self._limits.process_memory = nbytes
            self._limits.flags |= _PROCESS_MEMORY
            self._set()

    def _set(self) -> None:
        size = ctypes.c_uint32(ctypes.sizeof(self._limits))
        call = self._system.SetInformationJobObject
        if not call(self._job, ctypes.c_int(_EXTENDED_LIMITS), ctypes.byref(self._limits), size):
            raise error()

    @property
    def allocated_bytes(self) -> int | None:
        """Bytes of memory that the process has allocated; None if Windows does not say."""
        return allocated_bytes(self._process)

    def close(self) -> None:
        """End the process, and close the job."""
        self._system.CloseHandle(self._job)
        self._system.CloseHandle(self._process)


def _job_information(kind: int, into: Any) -> bool:
    """Read information about the job that this process runs in. False if it runs in none."""
    call = library("kernel32").QueryInformationJobObject
    return bool(call(None, ctypes.c_int(kind), ctypes.byref(into), ctypes.c_uint32(ctypes.sizeof(into)), None))


def job_memory_limits() -> Iterator[tuple[int, int]]:
    """Limit and usage, in bytes, of the memory of this process and of its job, where the job limits them."""
    limits = JobLimits()
    if not _job_information(_EXTENDED_LIMITS, limits):
        return
    if limits.flags & _PROCESS_MEMORY:
        yield limits.process_memory, allocated_bytes() or 0
    if limits.flags & _JOB_MEMORY:
        usage = (ctypes.c_uint64 * 2)()  # JOBOBJECT_MEMORY_USAGE_INFORMATION: now, peak
        used = usage[0] if _job_information(_MEMORY_USAGE, usage) else limits.peak_job_memory
        yield limits.job_memory, used


def job_cpu_share() -> float | None:
    """The share of the machine's CPU time that the job of this process may use; None: no limit."""
    rate = (ctypes.c_uint16 * 4)()  # JOBOBJECT_CPU_RATE_CONTROL_INFORMATION
    if not _job_information(_CPU_RATE, rate):
        return None
    flags, value = rate[0] | rate[1] << 16, rate[2] | rate[3] << 16
    if flags & _RATE_ON and flags & _RATE_HARD and value:
        return value / 10_000
    if flags & _RATE_ON and flags & _RATE_RANGE and rate[3]:
        return int(rate[3]) / 10_000  # MaxRate
    return None


# Owners and access control lists of files on Windows: who else can change a file. Windows prints the owner and the
# access control list of a file in the security descriptor definition language (SDDL): "O:BAD:(A;;FA;;;SY)(A;;FR;;;WD)",
# for example. Source: Microsoft's documentation, "Security Descriptor String Format" and "ACE Strings".

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
    if (not flags and not bracket) or "NO_ACCESS_CONTROL" in flags:  # a file without a list is open to everyone
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
        system.GetTokenInformation(token, _TOKEN_USER, None, 0, ctypes.byref(size))  # fails, and sets the size
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
