"""Ctrl-C before the command line runs, while it starts and after it has ended: exit code 130 and no output."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.processes import environment, python

if sys.platform == "win32":
    pytest.skip("signals of POSIX", allow_module_level=True)

BEGIN = """
import os, signal, sys

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100): pass

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("AT_IMPORT_OF"):
            sys.meta_path.remove(self)
            interrupt()

sys.meta_path.insert(0, Importing())
"""
START = f"{BEGIN}\nfrom pellucid.__main__ import main\nsys.argv[:] = ['pellucid', 'list']\n"


def run(code: str, **variables: str) -> tuple[int, str]:
    command, env = python(code), environment(**variables)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "pellucid.cli.main",
        "typer",
        "pellucid.cli.common",
        "pellucid.cli.commands.models",
        "pellucid.weights.store",
        "rich.table",
    ],
)
def test_while_something_is_imported(module: str) -> None:
    assert run(f"{START}\nsys.exit(main())", AT_IMPORT_OF=module) == (130, "")


def test_before_the_command_line_runs() -> None:
    assert run(f"{START}\ninterrupt()\nsys.exit(main())") == (130, "")


def test_when_it_has_ended() -> None:
    assert run(f"{START}\ncode = main()\ninterrupt()\nsys.exit(code)") == (130, "")


def test_in_the_first_lines_of_the_command_line() -> None:
    change = (
        "import io\nclass Input(io.TextIOWrapper):\n    def reconfigure(self, **_):\n        interrupt()\n"
        "sys.stdin = Input(io.BytesIO())"
    )
    assert run(f"{START}\n{change}\nsys.exit(main())") == (130, "")


def test_one_that_the_system_ignores_is_ignored() -> None:
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert run(f"{ignore}{START}\ninterrupt()\nsys.exit(main())") == (0, "")


def test_importing_the_library_takes_nothing_from_a_program() -> None:
    code = "import signal; before = signal.getsignal(2); import pellucid; assert signal.getsignal(2) is before"
    assert run(code) == (0, "")
