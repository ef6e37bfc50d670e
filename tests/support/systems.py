"""Marks of tests that need a system, and a process as on Windows."""

from __future__ import annotations

import os
import sys

import pytest

from pellucid.tokenize.chat.template import BOOT

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals, links and permissions of POSIX")
affinity = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a system that binds threads")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="a system that forks")

BOOT_OF_WINDOWS = BOOT.replace(
    "template_worker.main()",
    "template_worker.Limits = template_worker.ThreadLimits; template_worker._is_large = lambda: False; "
    "template_worker.main()",
)
"""Starts a worker for chat templates without signals and resource limits, as on Windows."""
