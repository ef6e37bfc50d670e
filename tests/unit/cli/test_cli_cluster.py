"""Options of clusters where what a cluster needs is not installed, and where no cluster was asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["ray", "zmq", "msgpack"]))  # as if they were not installed
import pellucid, pellucid.serve.app, pellucid.serve.run
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
