"""Cluster options without the packages of clusters, and without a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import Command

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["ray", "zmq", "msgpack"]))  # as if they were not installed
import pellucid, pellucid.serve.server, pellucid.serve.server
from pellucid.__main__ import main
sys.argv = ["pellucid", *sys.argv[1:]]
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cluster", "auto"], "pip install 'pellucid[cluster]'"),
        (["--cluster", "auto", "--replicas", "0"], "replicas=0"),
        (["--cluster", "auto", "--replicas", "3", "--max-replicas", "2"], "max_replicas=2"),
        (["--cluster", "auto", "--replica-cpus", "0"], "replica_cpus=0"),
        (["--replicas", "2"], "--replicas 2 is for a cluster"),
        (["--max-replicas", "2"], "--max-replicas 2 is for a cluster"),
    ],
)
def test_a_cluster_without_the_extra(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-c", WITHOUT, "serve", "smollm2", "--port", "0", *arguments]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (made.returncode, made.stdout) == (2, "")
    assert said in made.stderr
    assert "Traceback" not in made.stderr


def test_planning_needs_no_extra(tmp_path: Path) -> None:
    machines = tmp_path / "machines.json"
    kind = {"name": "a", "memory_gb": 64, "cores": 16, "read_gb_per_s": 80, "multiply_gmac_per_s": 3000}
    machines.write_text(json.dumps({"machines": [kind]}))
    for asked in (["plan"], ["capacity", "--rate", "0.1", "--ttft", "9s", "--day", "flat"]):
        command = [sys.executable, "-c", WITHOUT, *asked, "llama-3-8b", "--context", "2048", "--machines", machines]
        made = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (made.returncode, "Traceback" in made.stderr) == (0, False)
        assert "80.0 GB/s" in made.stdout


def test_the_command_for_one_machine_sets_the_threads(command: Command, tiny: str, tmp_path: Path) -> None:
    machines = tmp_path / "machines.json"
    kind = {"name": "a", "memory_gb": 64, "cores": 2, "read_gb_per_s": 80, "multiply_gmac_per_s": 3000}
    machines.write_text(json.dumps({"machines": [kind]}))
    asked = ("plan", tiny, "--machines", str(machines))
    assert command(*asked).out.rstrip().endswith(f"pellucid serve {tiny}")
    shown = command(*asked, "--threads", "2", "--context", "64").out
    assert shown.rstrip().endswith(f"pellucid serve {tiny} --threads 2 --context 64")
