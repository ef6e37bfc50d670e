"""The recipes of docs/recipes: their form, their states, and commands and files that are valid without a run."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "recipes"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
STATE = re.compile(r"^State: \*\*(ran here|schema-checked|written only)\*\* \(.+\)\.$", re.MULTILINE)
RUN = re.compile(r"\(\S.* \d+\.\d+(\.\d+)?, \d{4}-\d\d-\d\d\)")
PROSE_LINES = 8

sys.path.insert(0, str(ROOT / "tests" / "clients"))
from recipe import SERVERS, Block, Recipe, blocks_of, python_of  # noqa: E402


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_has_a_title_few_words_blocks_and_a_state(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    (state,) = STATE.findall(text)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len([line for line in prose.splitlines() if line.strip()]) <= PROSE_LINES + 2
    blocks = blocks_of(text)
    assert blocks
    assert text.count("\n```") == 2 * len(blocks), "a block that the test does not see"
    if state == "ran here":
        assert RUN.search(text), "the version and the date of the run"
        assert any(block.kind == "text" for block in blocks), "a run without an output proves nothing"
        assert any(block.kind == "sh" and "install" in block.text for block in blocks)


def test_the_index_has_each_page_with_its_state() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[.+?\]\((.+?)\) \| .+ \| \*\*(.+?)\*\* \|$", index, re.MULTILINE))
    assert rows == {page.name: STATE.findall(page.read_text(encoding="utf-8"))[0] for page in PAGES}
    assert "(recipes/README.md)" in (ROOT / "docs" / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[tuple[str, Block]]:
    return [
        (page.stem, block)
        for page in PAGES
        for block in blocks_of(page.read_text(encoding="utf-8"))
        if block.kind == kind
    ]


@pytest.mark.parametrize(("name", "block"), blocks("py"))
def test_programs_are_python(name: str, block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize(("name", "block"), [*blocks("json"), *blocks("yaml")])
def test_files_are_what_they_say(name: str, block: Block) -> None:
    assert block.file
    loaded = json.loads(block.text) if block.kind == "json" else yaml.safe_load(block.text)
    assert isinstance(loaded, dict)


def servers() -> list[str]:
    """The commands that start Pellucid."""
    lines = (line for _, block in blocks("sh") for line in block.text.splitlines())
    return sorted({line for line in lines if line.startswith("pellucid serve")})


@pytest.mark.parametrize("line", servers())
def test_servers_start_as_the_pages_say(line: str) -> None:
    """A port out of range is the only error: all other arguments are right, and the models are known."""
    from pellucid.weights.catalogue import find

    words = shlex.split(line)[2:]
    done = subprocess.run(
        [sys.executable, "-m", "pellucid", "serve", *words, "--port", "70000"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("pellucid: port=70000"), done.stderr
    assert all(find(word) for word in words if not word.startswith("--"))


def test_every_page_that_asks_a_server_starts_one() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for server in SERVERS:
            if f"127.0.0.1:{server.port}" in text:
                assert f"\n{server.command}" in text, (page.name, server.command)


def test_blocks_and_versions_are_found() -> None:
    page = "# A\n\nNeeds Python 3.13.\n\n```yaml ~/a.yaml\na: 1\n```\n\n```sh\nls \\\n    -l\n```\n"
    assert blocks_of(page) == [Block("yaml", "~/a.yaml", "a: 1\n"), Block("sh", "", "ls \\\n    -l\n")]
    assert python_of(page) == "python3.13"
    assert python_of("# A") is None


def test_a_run_compares_the_output(tmp_path: Path) -> None:
    """A file, a script that reads it, and its output; another output is an error, and so is a command that fails."""
    recipe = Recipe(tmp_path, tmp_path / "environment")
    for block in blocks_of("```conf ~/a.conf\nport 8000\n```\n\n```sh\ncat ~/a.conf  # 8000\n```\n"):
        recipe.run(block)
    assert recipe.output == f"port {recipe.ports[8000]}\n"
    recipe.run(Block("text", "", "port 8000\n"))
    with pytest.raises(AssertionError, match="differs from the page"):
        recipe.run(Block("text", "", "port 1\n"))
    with pytest.raises(SystemExit, match="exit status 1"):
        recipe.run(Block("sh", "", "false\necho never\n"))


def test_keys_of_the_environment_do_not_reach_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_AUTH_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in Recipe(tmp_path, tmp_path).variables.values()
