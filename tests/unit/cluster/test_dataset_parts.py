"""pellucid record --cluster: the same files as on one machine, also if a process of a part is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from support.command import PROGRAM, pellucid  # noqa: E402
from support.processes import environment  # noqa: E402
from support.ray_server import ray_nodes  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with ray_nodes(2, 1) as made:
        yield made


def hashes(folder: Path) -> dict[str, str]:
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in sorted(folder.iterdir())}


def workers() -> list[int]:
    """The processes of Ray that record a part."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::record_part"):
            found.append(int(name))
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes of Linux")
def test_the_same_files_when_a_process_is_killed(nodes: Any, llama_file: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"the cat sat on the mat {i} " * (1 + i % 9) for i in range(1500)))
    given = ["record", str(llama_file), str(corpus), "--points", "**.residual", "--points", "embed", "--json"]
    given += ["--shard-size", "1"]
    whole = pellucid(*given, "--out", str(tmp_path / "whole")).document
    out = tmp_path / "cluster"
    command = [
        *PROGRAM,
        *given,
        "--out",
        str(out),
        "--cluster",
        nodes.address,
        "--replicas",
        "2",
        "--replica-cpus",
        "1",
    ]
    run = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(out.glob("*.safetensors")) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    killed = workers()[:1]
    for process in killed:
        os.kill(process, signal.SIGKILL)
    said, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert killed
    found = json.loads(said)
    assert (found["complete"], found["sha256"]) == (True, whole["sha256"])
    assert hashes(out) == hashes(tmp_path / "whole")


def test_the_error_of_a_part(nodes: Any, llama_file: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a text")
    given = ("record", str(llama_file), str(corpus), "--out", str(tmp_path / "data"), "--cluster", nodes.address)
    cpus = ("--replica-cpus", "1")
    refused = pellucid(*given, *cpus, "--points", "blocks.9.residual")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].startswith("pellucid: point='blocks.9.residual': no point has this name")
    refused = pellucid(*given, *cpus, "--points", "embed", "--part", "1/2")
    assert "part='1/2': the cluster computes all parts: leave --part or --cluster out" in refused.err
