"""Runs the blocks of a recipe in docs/recipes, one after the other: make test-clients CLIENTS=recipe-NAME.

    python tests/clients/recipe.py PAGE

Blocks run in an empty home folder, with a virtual environment of the page's own, and without the variables of the
environment that may hold keys. The kinds of blocks:

    sh          a script of the shell; a line `pellucid serve …` starts a server, which runs until the end of the page
    py          a Python program
    text        the output of the block before, without spaces at the ends of lines
    KIND FILE   any other kind with the path of a file: the file

Two things differ from the page. Servers listen at free ports, which replace 127.0.0.1:8000. Packages of this repository
are installed from this repository.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "127.0.0.1:8000"
OWN = {"pellucid": f"{ROOT}", "llm-pellucid": f"{ROOT}/plugins/llm-pellucid {ROOT}"}
"""Packages of this repository, and what pip installs for them: their folders."""
KEPT = re.compile(r"LANG|LC_\w+|TMPDIR|SSL_CERT_\w+|\w+_CA_\w+|PIP_\w+|UV_\w+|(?i:npm_config_\w+)|HF_HUB_OFFLINE")
SECONDS = 900


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its ``kind``, the ``file`` that it is the content of ("" for none), and its ``text``."""

    kind: str
    file: str
    text: str

    @property
    def scripts(self) -> list[str]:
        """The scripts of a block of kind sh. A command that starts a server is a script of its own."""
        scripts = [""]
        for line in self.text.replace("\\\n", " ").splitlines():
            if is_server(line):
                scripts += [line, ""]
            else:
                scripts[-1] += f"{line}\n"
        return [script for script in scripts if script.strip()]


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(kind, file, text) for kind, file, text in BLOCK.findall(page)]


def is_server(command: str) -> bool:
    """True for a command that starts a server and does not end."""
    return command.startswith("pellucid serve")


@dataclass
class Recipe:
    """A page that runs, in the folder ``home``, with the programs of the virtual environment ``environment``."""

    home: Path
    environment: Path
    address: str = ADDRESS
    output: str = ""
    servers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of the commands."""
        kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
        path = [str(self.environment / "bin"), str(self.home / "bin"), os.environ["PATH"]]
        return {
            **kept,
            "HOME": str(self.home),
            "PATH": os.pathsep.join(path),
            "PELLUCID_HOME": os.environ.get("PELLUCID_HOME", str(Path.home() / ".cache" / "pellucid")),
            "PIP_QUIET": "1",
            "npm_config_prefix": str(self.environment),
        }

    def prepare(self) -> None:
        """Make the virtual environment, and the program ``pellucid`` of the environment that runs the tests."""
        if not (self.environment / "bin" / "python").exists():
            venv.create(self.environment, with_pip=True)
        program = self.home / "bin" / "pellucid"
        program.parent.mkdir()
        python = os.environ.get("PELLUCID_PYTHON", sys.executable)
        path = f"PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])} " if "PYTHONPATH" in os.environ else ""
        program.write_text(f'#!/bin/sh\n{path}exec {shlex.quote(python)} -m pellucid "$@"\n')
        program.chmod(0o755)

    def run(self, block: Block) -> None:
        """Run a block, or compare it with the output of the block before."""
        text = block.text.replace(ADDRESS, self.address)
        if block.file:
            path = Path(block.file.replace("~", str(self.home), 1))
            path = path if path.is_absolute() else self.home / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif block.kind == "sh":
            self.output = ""
            for script in block.scripts:
                # The address of a server is known after its start.
                self.run_script(script.replace(ADDRESS, self.address))
        elif block.kind == "py":
            (self.home / "program.py").write_text(text)
            self.output = self.printed([str(self.environment / "bin" / "python"), "program.py"])
        elif block.kind == "text":
            found, wanted = (stripped(one) for one in (self.output, text))
            assert found == wanted, f"the output differs from the page:\n{found}\nwanted:\n{wanted}"
        else:
            raise SystemExit(f"a block of kind {block.kind} needs the path of its file")

    def run_script(self, script: str) -> None:
        """Run a script in a shell, or start a server."""
        if not is_server(script):
            lines = [_with_own(line) if line.startswith("pip ") else line for line in script.splitlines()]
            self.output += self.printed(["bash", "-euo", "pipefail", "-c", "\n".join(lines)])
            return
        server = subprocess.Popen(
            [*shlex.split(script, comments=True), "--port", "0"],
            env=self.variables, cwd=self.home, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.servers.append(server)
        assert server.stderr is not None
        said = list[str]()
        for line in server.stderr:
            said.append(line)
            if " at http://" in line:
                self.address = line.split()[-1].removeprefix("http://")
                return
        raise SystemExit(f"the server did not start:\n{''.join(said)}")

    def printed(self, command: list[str]) -> str:
        """Run a program, and return its standard output."""
        done = subprocess.run(
            command, env=self.variables, cwd=self.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            text=True, timeout=SECONDS,
        )  # fmt: skip
        print(done.stdout, end="", flush=True)
        if done.returncode:
            raise SystemExit(f"{command[-1]}: exit status {done.returncode}")
        return done.stdout

    def close(self) -> None:
        """End the servers."""
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
        for server in self.servers:
            server.wait()


def _with_own(command: str) -> str:
    """A command of pip that installs the packages of this repository from it."""
    return " ".join(OWN.get(word.strip("'\""), word) for word in command.split())


def stripped(text: str) -> str:
    """A text without spaces at the ends of its lines, and without empty lines at its ends."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def main() -> None:
    page = Path(sys.argv[1])
    environments = Path(f"{sys.prefix}-recipes")
    with tempfile.TemporaryDirectory() as home:
        recipe = Recipe(Path(home), environments / page.stem)
        recipe.prepare()
        try:
            for block in blocks_of(page.read_text()):
                recipe.run(block)
        finally:
            recipe.close()


if __name__ == "__main__":
    main()
