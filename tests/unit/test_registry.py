"""Discovery: a second file, step, kind or kernel with the same name raises an error that names both files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.things import Base, Thing

from pellucid.cli.command import command_named, known_commands
from pellucid.model.family import architectures, family_of, known_families
from pellucid.sample.step import steps
from pellucid.tokenize.kind import gguf_reader, known_kinds
from pellucid.util.registry import discover, discover_classes, find, modules
from pellucid.weights.quant.format import formats
from pellucid.weights.sources.source import sources

IMPORTS = """
from pellucid.cli.command import Command, CommandGroup
from pellucid.model.family import Family
from pellucid.sample.step import SamplerStep
from pellucid.tokenize.kind import Kind
from pellucid.weights.quant.format import Format
from pellucid.weights.sources.source import Source
"""
"""Imports of files that declare something in these folders."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package, "things", that can be imported."""
    folder = tmp_path / "things"
    (folder / "inner").mkdir(parents=True)
    for one in (folder, folder / "inner"):
        (one / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "things"]:
        del sys.modules[name]


def write(path: Path, *lines: str) -> None:
    path.write_text("\n".join(("from support.things import Base, Thing", *lines, "")), encoding="utf-8")


def test_everything_in_a_folder_and_in_folders_of_it_is_found(package: Path) -> None:
    write(package / "one.py", "A = Thing('a')", "ALSO_A = A")
    write(package / "inner" / "two.py", "from things.one import A", "B = Thing('b')")
    assert [module.__name__ for module in modules("things")] == ["things.inner.two", "things.one"]
    assert {name: one.name for name, one in discover("things", Thing, lambda one: (one.name,)).items()} == {
        "a": "a",
        "b": "b",
    }


def test_two_objects_of_one_name_are_an_error_that_names_both_files(package: Path) -> None:
    write(package / "one.py", "A = Thing('a')")
    write(package / "inner" / "two.py", "A = Thing('a')")
    with pytest.raises(TypeError, match=r"'a' is declared twice: in .*things/inner/two\.py and .*things/one\.py"):
        discover("things", Thing, lambda one: (one.name,))


def test_two_classes_of_one_name_are_an_error_that_names_both_files(package: Path) -> None:
    for file in ("one", "two"):
        write(package / f"{file}.py", "class A(Base):", "    name = 'a'")
    with pytest.raises(TypeError, match=r"'a' is declared twice: in .*things/one\.py and .*things/two\.py"):
        discover_classes("things", Base, lambda one: (one.name,))


@pytest.mark.parametrize(
    ("look", "home", "source"),
    [
        (known_families, "pellucid.model.families", "A = Family('llama')"),
        (lambda: architectures("gguf"), "pellucid.model.families", "A = Family('other', gguf={'llama': None})"),
        (formats, "pellucid.weights.quant", "A = Format('Q4_0', None, None)"),
        (lambda: family_of("llama", "gguf"), "pellucid.model.families", "A = Family('other', gguf={'llama': None})"),
        (lambda: gguf_reader("gpt2"), "pellucid.tokenize.kinds", "A = Kind('other', gguf={'gpt2': None})"),
        (known_kinds, "pellucid.tokenize.kinds", "A = Kind('wordpiece')"),
        (known_kinds, "pellucid.tokenize.kinds", "A = Kind('other', gguf={'gpt2': None})"),
        (steps, "pellucid.sample.steps", "class A(SamplerStep):\n    name, order, kind = 'top_k', 1, 'cut'"),
        (known_commands, "pellucid.cli.commands", "A = Command('run', print)"),
        (known_commands, "pellucid.cli.commands", "A = CommandGroup('run', '', {})"),
        (
            sources,
            "pellucid.weights.sources",
            "class A(Source):\n    scheme = 'hf'\n    cached = fetch = None\nSOURCE = A()",
        ),
    ],
)
def test_a_second_of_a_name_in_each_folder_is_an_error(
    look: object, home: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second file in the folder declares the same name."""
    package = __import__(home, fromlist=["x"])
    (tmp_path / "zz_second.py").write_text(f"{IMPORTS}\n{source}\n")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    fresh = getattr(look, "__wrapped__", look)
    found = (architectures, family_of, known_families, known_kinds, gguf_reader, formats, sources, steps)
    for cached in found:
        cached.cache_clear()
    with pytest.raises(TypeError, match=r"declared twice: in pellucid/.*\.py and .*zz_second\.py"):
        fresh()
    sys.modules.pop(f"{home}.zz_second")
    for cached in found:
        cached.cache_clear()


def test_each_command_is_found_alone() -> None:
    for name, one in known_commands().items():
        assert command_named(name) is one
    for other in ("", "rum", "a.b", "__init__", "list_", "--help", "../run"):
        assert command_named(other) is None


def test_a_command_does_not_import_the_others() -> None:
    code = (
        "import sys; from pellucid.cli.main import application, command_named; application(command_named('run')); "
        "print(*[m for m in sys.modules if m.startswith('pellucid.cli.commands.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pellucid.cli.commands.run"]


def test_find_imports_the_modules_that_mention_a_name(package: Path) -> None:
    for name in ("one", "two", "three"):
        write(package / "inner" / f"{name}.py", f'A = Thing("{name}")')
    write(package / "joined.py", 'A = Thing("-".join(("fo", "ur")))', 'OTHER = "one"')
    found = find("things", Thing, lambda one: (one.name,), "two")
    assert found is not None
    assert found.name == "two"
    assert "things.inner.two" in sys.modules
    assert not {"things.inner.one", "things.inner.three", "things.joined"} & sys.modules.keys()
    for name in ("one", "fo-ur"):  # a name that another module mentions, and a name that no source mentions
        found = find("things", Thing, lambda one: (one.name,), name)
        assert found is not None
        assert found.name == name
    assert find("things", Thing, lambda one: (one.name,), "five") is None


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_each_architecture_is_found_alone(kind: str) -> None:
    for name, family in architectures(kind).items():
        assert family_of(name, kind) is family


def test_each_kind_of_vocabulary_is_found_alone() -> None:
    for kind in known_kinds().values():
        for name, read in kind.gguf.items():
            assert gguf_reader(name) is read
    assert gguf_reader("none") is None
