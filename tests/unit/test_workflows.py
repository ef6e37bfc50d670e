"""The workflows of GitHub: pinned actions, few permissions, each system with a wheel, each supported Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
if not FOLDER.exists():
    pytest.skip("an installation without .github", allow_module_level=True)
WORKFLOWS: dict[str, Any] = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in FOLDER.glob("*.yml")}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_and_permissions_are_few(name: str) -> None:
    text, workflow = (FOLDER / name).read_text("utf-8"), WORKFLOWS[name]
    for action, version in re.findall(r"uses: (\S+)(.*)", text):
        assert action.startswith("./") or (
            re.search(r"@[0-9a-f]{40}$", action) and re.fullmatch(r" # v\d+\.\d+\.\d+", version)
        ), action
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]
    for job, content in workflow["jobs"].items():
        permissions = content["permissions"]
        assert set(permissions.values()) <= {"read"} or (name, job) == ("publish.yml", "publish"), job
        assert "uses" in content or content["timeout-minutes"] <= 90
    assert "secrets." not in text


def test_every_wheel_is_built_and_gives_an_answer() -> None:
    jobs = WORKFLOWS["wheels.yml"]["jobs"]
    systems = set(jobs["build"]["strategy"]["matrix"]["system"])
    assert {one["system"] for one in jobs["answer"]["strategy"]["matrix"]["include"]} == systems
    hooks = ROOT / "packaging" / "hooks.py"
    platforms = re.search(r"PLATFORMS = \{(.*?)\n\}", hooks.read_text("utf-8"), re.DOTALL)
    assert platforms is not None
    assert set(re.findall(r'^ +"([\w-]+)":', platforms[1], re.MULTILINE)) == systems


def test_the_oldest_python_is_tested() -> None:
    requires = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert requires is not None
    assert requires[1] in WORKFLOWS["test.yml"]["jobs"]["quick"]["strategy"]["matrix"]["python"]
    assert requires[1] in WORKFLOWS["wheels.yml"]["jobs"]["answer"]["strategy"]["matrix"]["python"]


def test_only_tags_publish() -> None:
    assert WORKFLOWS["publish.yml"][True] == {"push": {"tags": ["v*"]}}  # YAML reads "on" as true
    assert WORKFLOWS["publish.yml"]["jobs"]["publish"]["permissions"] == {"id-token": "write"}
