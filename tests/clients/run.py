"""Runs real clients, unmodified, against a server: make test-clients.

    .venv/bin/python tests/clients/run.py PYTHON [NAME ...]

PYTHON is the interpreter of an environment with the clients (``requirements.txt``). NAMES select programs in this
folder; recipe-NAME is a page of docs/recipes (``recipe.py``). The server runs in this environment, with real models.
Each program gets the server's address and exits with an error if a check fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from recipe import python_of

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "docs" / "recipes"
MODELS = ["smollm2", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
"""Models of the server. Clients that name no model get the tokenizer of the first."""


def main() -> int:
    python, names = sys.argv[1], sys.argv[2:]
    programs = {path.stem: [python, str(path)] for path in sorted(HERE.glob("*_client.py"))}
    for page in sorted(RECIPES.glob("*.md")):
        if "**ran here**" in page.read_text():
            programs[f"recipe-{page.stem}"] = [python, str(HERE / "recipe.py"), str(page)]
    if shutil.which("npm"):
        programs["javascript"] = ["node", str(installed_javascript() / "clients.mjs")]
    else:
        print("javascript: skipped, there is no npm")
    server = subprocess.Popen(
        [sys.executable, "-m", "pellucid", "serve", *MODELS, "--port", "0", "--context", "4096", "--pull"],
        stderr=subprocess.PIPE,
        text=True,
    )
    failed = []
    try:
        url = address(server)
        for name, command in programs.items():
            if names and name not in names:
                continue
            if missing := [one for one in needed(name, command) if not shutil.which(one)]:
                print(f"{name}: skipped, there is no {missing[0]}")
                continue
            start = time.monotonic()
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PELLUCID_PYTHON": sys.executable}
            done = subprocess.run([*command, url], env=environment, check=False)
            print(f"{name}: {'failed' if done.returncode else 'ok'}, {time.monotonic() - start:.0f} s", flush=True)
            failed += [name] if done.returncode else []
    finally:
        server.terminate()
        server.wait()
    return 1 if failed else 0


def needed(name: str, command: list[str]) -> list[str]:
    """Programs that a recipe needs, besides the programs that it installs."""
    page = Path(command[-1]).read_text() if name.startswith("recipe-") else ""
    return [*(["npm"] if "npm install" in page else []), *filter(None, [python_of(page)])]


def address(server: subprocess.Popen[str]) -> str:
    """Wait until the server answers. Returns its address."""
    assert server.stderr is not None
    for line in server.stderr:
        if " at http" in line:
            url = line.split()[-1]
            break
    else:
        raise SystemExit("the server did not start")
    httpx.get(url + "/health").raise_for_status()
    return url


def installed_javascript() -> Path:
    """Install the JavaScript clients with their packages. Returns their folder."""
    folder = Path(tempfile.gettempdir()) / "pellucid-clients"
    folder.mkdir(exist_ok=True)
    for name in ("package.json", "clients.mjs"):
        shutil.copy(HERE / name, folder / name)
    subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit"], cwd=folder, check=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
