"""Marks of tests that need a system."""

from __future__ import annotations

import os
import sys

import pytest

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals, links and permissions of POSIX")
affinity = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a system that binds threads")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="a system that forks")
