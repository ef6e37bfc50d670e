"""Calls of macOS's C library and of the Mach kernel, through ctypes. They fail with an OSError on other systems."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_HOST_VM_INFO64 = 4
_RUSAGE_INFO_V0 = 0
_QOS_CLASS_UTILITY = 0x11


class VmStatistics(ctypes.Structure):
    """The first fields of ``struct vm_statistics64``: numbers of pages. Source: XNU, osfmk/mach/vm_statistics.h."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("free", "active", "inactive", "wired")),
        *((name, ctypes.c_uint64) for name in ("zero_fill", "reactivations", "pageins", "pageouts", "faults")),
        *((name, ctypes.c_uint64) for name in ("copy_on_write", "lookups", "hits", "purges")),
        *((name, ctypes.c_uint32) for name in ("purgeable", "speculative")),
    ]


class ProcessUsage(ctypes.Structure):
    """``struct rusage_info_v0``: the resources of a process. Source: XNU, bsd/sys/resource.h."""

    _fields_ = [
        ("uuid", ctypes.c_uint8 * 16),
        *((name, ctypes.c_uint64) for name in ("user_time", "system_time", "idle_wakeups", "interrupt_wakeups")),
        *((name, ctypes.c_uint64) for name in ("pageins", "wired_bytes", "resident_bytes", "footprint_bytes")),
        *((name, ctypes.c_uint64) for name in ("started", "exited")),
    ]


@functools.cache
def library() -> Any:
    """The system's C library. Raises OSError on another system."""
    if sys.platform != "darwin":
        raise OSError("this function exists on macOS only")
    return ctypes.CDLL(None, use_errno=True)


def sysctl_bytes(name: str) -> bytes | None:
    """The value of a variable of sysctl(3); None if this machine does not have the variable."""
    size = ctypes.c_size_t(0)
    call = library().sysctlbyname
    if call(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    if call(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    return buffer.raw[: size.value]


def sysctl_number(name: str) -> int:
    """An integer of sysctl(3), of 32 or 64 bits; 0 if this machine does not have it."""
    return int.from_bytes(sysctl_bytes(name) or b"", "little")


def sysctl_text(name: str) -> str:
    """A text of sysctl(3); "" if this machine does not have it."""
    return (sysctl_bytes(name) or b"").partition(b"\0")[0].decode(errors="replace")


def lower_priority() -> None:
    """Lower the priority of the calling thread. Source: sys/qos.h and pthread/qos.h."""
    library().pthread_set_qos_class_self_np(ctypes.c_uint32(_QOS_CLASS_UTILITY), 0)


def vm_statistics() -> VmStatistics | None:
    """Counts of the machine's memory pages; None if the kernel does not report them."""
    found = VmStatistics()
    count = ctypes.c_uint32(ctypes.sizeof(found) // 4)  # an older or newer kernel fills as many words as fit
    system = library()
    host = ctypes.c_uint32(system.mach_host_self())
    failed = system.host_statistics64(host, _HOST_VM_INFO64, ctypes.byref(found), ctypes.byref(count))
    return None if failed else found


def process_bytes(process: int) -> int | None:
    """Bytes of memory that a process occupies, in RAM, compressed or swapped ("Memory" in Activity Monitor).

    None if the process has ended or belongs to another user. Source: proc_pid_rusage in Apple's libproc.h.
    """
    usage = ProcessUsage()
    failed = library().proc_pid_rusage(ctypes.c_int(process), _RUSAGE_INFO_V0, ctypes.byref(usage))
    return None if failed else int(usage.footprint_bytes)
