"""Runs the blocks of a recipe in docs/recipes, one after the other: make test-clients CLIENTS=recipe-NAME.

    python tests/clients/recipe.py PAGE

Blocks run in an empty home folder, with a virtual environment of the page's own, and without the variables of the
environment that may hold keys. The kinds of blocks:

    sh          a script of the shell; a line that starts a server waits until it is ready, and the server runs until
                the end of the page
    py          a Python program
    text        the output of the block before, without spaces at the ends of lines
    KIND FILE   any other kind with the path of a file: the file

Two things differ from the page. Servers listen at free ports, which replace the ports in the page. Packages of this
repository are installed from this repository. The environment has the version of Python that the page names ("Python
3.13"), or the version that runs this program.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OWN = {"pellucid": f"{ROOT}", "llm-pellucid": f"{ROOT}/plugins/llm-pellucid {ROOT}"}
"""Packages of this repository, and what pip installs for them: their folders."""
KEPT = re.compile(r"LANG|LC_\w+|TMPDIR|SSL_CERT_\w+|\w+_CA_\w+|PIP_\w+|UV_\w+|(?i:npm_config_\w+)|HF_HUB_OFFLINE")
SECONDS = 900


@dataclass(frozen=True)
class Server:
    """A server that pages start with ``command``, and its ``port`` in pages.

    ``option`` sets another port ("": the port is in its file). A request of ``path`` succeeds when the server is ready.
    """

    command: str
    port: int
    option: str = "--port"
    path: str = "/health"


SERVERS = (
    Server("pellucid serve", 8000),
    Server("open-webui serve", 8080),
    Server("hass ", 8123, "", "/api/onboarding"),
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its ``kind``, its ``text``, and the ``file`` that has this text ("" for none)."""

    kind: str
    file: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(kind, file, text) for kind, file, text in BLOCK.findall(page)]


@dataclass
class Recipe:
    """A page that runs, in the folder ``home``, with the programs of the virtual environment ``environment``.

    ``ports`` are the ports of the servers, by their ports in the page.
    """

    home: Path
    environment: Path
    ports: dict[int, int] = field(default_factory=lambda: {one.port: free_port() for one in SERVERS})
    output: str = ""

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

    def prepare(self, python: str) -> None:
        """Make the virtual environment, and the program ``pellucid`` of the environment that runs the tests."""
        if not (self.environment / "bin" / "python").exists():
            subprocess.run([python, "-m", "venv", self.environment], check=True)
        program = self.home / "bin" / "pellucid"
        program.parent.mkdir()
        own = os.environ.get("PELLUCID_PYTHON", sys.executable)
        path = f"PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])} " if "PYTHONPATH" in os.environ else ""
        program.write_text(f'#!/bin/sh\n{path}exec {shlex.quote(own)} -m pellucid "$@"\n')
        program.chmod(0o755)

    def run(self, block: Block) -> None:
        """Run a block, or compare it with the output of the block before."""
        text = self.with_ports(block.text)
        if block.file:
            path = Path(block.file.replace("~", str(self.home), 1))
            path = path if path.is_absolute() else self.home / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif block.kind == "sh":
            lines = list(map(self.command, block.text.replace("\\\n", " ").splitlines()))
            self.output = self.printed(["bash", "-euo", "pipefail", "-c", self.with_ports("\n".join(lines))])
        elif block.kind == "py":
            (self.home / "program.py").write_text(text)
            self.output = self.printed([str(self.environment / "bin" / "python"), "program.py"])
        elif block.kind == "text":
            found, wanted = (stripped(one) for one in (self.output, text))
            assert found == wanted, f"the output differs from the page:\n{found}\nwanted:\n{wanted}"
        else:
            raise SystemExit(f"a block of kind {block.kind} needs the path of its file")

    def with_ports(self, text: str) -> str:
        """A text of the page with the ports of the servers."""
        for port, free in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(free), text)
        return text

    def command(self, line: str) -> str:
        """A line of a script, with the two differences from the page."""
        if line.startswith("pip "):
            return " ".join(OWN.get(word.strip("'\""), word) for word in line.split())
        for server in SERVERS:
            if line.startswith(server.command):
                option = f" {server.option} {server.port}" if server.option else ""
                log = f"server-{server.port}.log"
                url = f"http://127.0.0.1:{server.port}{server.path}"
                wait = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)} wait {url} $! {log}"
                return f"{line}{option} >{log} 2>&1 &\necho $! >>servers\n{wait}"
        return line

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
        path = self.home / "servers"
        servers = [int(line) for line in path.read_text().splitlines()] if path.exists() else []
        for server in servers:
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGTERM)
        for server in servers:
            until(lambda server=server: not runs(server))


def free_port() -> int:
    """A port that no server uses."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait(url: str, process: int, log: str) -> None:
    """Wait until ``url`` answers. Exits with the output of the server if it ends before."""

    def is_ready() -> bool:
        if not runs(process):
            raise SystemExit(f"the server ended:\n{Path(log).read_text()}")
        try:
            return bool(urlopen(url, timeout=5).status == 200)
        except OSError:
            return False

    until(is_ready)


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"not within {SECONDS} seconds")
        time.sleep(0.2)


def runs(process: int) -> bool:
    """True while a process runs."""
    return Path(f"/proc/{process}/stat").exists() and ") Z " not in Path(f"/proc/{process}/stat").read_text()


def python_of(page: str) -> str | None:
    """The interpreter that a page names ("Python 3.13"); None if it names no version."""
    found = re.search(r"Python (3\.\d+)", page)
    return f"python{found[1]}" if found else None


def stripped(text: str) -> str:
    """A text without spaces at the ends of its lines, and without empty lines at its ends."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def main() -> None:
    if sys.argv[1] == "wait":
        wait(sys.argv[2], int(sys.argv[3]), sys.argv[4])
        return
    page = Path(sys.argv[1])
    text = page.read_text()
    environments = Path(f"{sys.prefix}-recipes")
    with tempfile.TemporaryDirectory() as home:
        recipe = Recipe(Path(home), environments / page.stem)
        recipe.prepare(python_of(text) or sys.executable)
        try:
            for block in blocks_of(text):
                recipe.run(block)
        finally:
            recipe.close()


if __name__ == "__main__":
    main()
