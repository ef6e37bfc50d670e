"""The structure of the source tree: unique class names, files and functions of readable size, valid references."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "pellucid"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_LINES, MAX_FUNCTION_LINES = 420, 80
REASON = "over 420 lines because"
OTHERS = {  # files of other projects that docstrings mention
    *("convert_hf_to_gguf.py", "openai_public.py", "tokenization.py", "utils/chat_template_utils.py"),
    *("tests/unit/kernels/test_scale.py", "encoder.py", "_version.py"),
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_a_class_name_has_one_meaning() -> None:
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(SOURCE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_a_long_file_says_why_at_its_top() -> None:
    for path in FILES:
        if len(path.read_text().splitlines()) > MAX_LINES:
            assert REASON in (ast.get_docstring(tree(path)) or ""), path


def test_functions_outside_of_kernels_fit_a_screen() -> None:
    long = [
        f"{path.relative_to(SOURCE)}: {node.name}"
        for path in FILES
        if "kernels" not in path.parts
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_what_every_start_makes_are_structs() -> None:
    """Decision 40: a dataclass costs each start 0.5 ms. ``KernelKey`` has an ``__init__`` of its own."""
    folders = ("model", "plan", "kernels", "weights", "runtime", "tokenize/patterns")
    found = [
        node.name
        for folder in folders
        for path in sorted((SOURCE / folder).rglob("*.py"))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and _is_dataclass(node)
    ]
    assert found == ["KernelKey"]


def test_values_that_users_read_have_the_same_bits_on_all_processors() -> None:
    """NumPy's exp and logarithms differ by a last bit between instruction sets (``util/probabilities.py``)."""
    functions = ("exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "tanh", "logaddexp")
    uses = re.compile(rf"np\.({'|'.join(functions)})\(")
    folders = ("trace", "serve", "cli", "decide", "encoders", "sample", "util")
    found = {
        str(path.relative_to(SOURCE)): uses.findall(path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted((SOURCE / folder).rglob("*.py"))
    }
    # The noise of stochastic beams has a value for each token of the vocabulary in each step. The head of "clef"
    # multiplies matrices with NumPy's library, whose last bits depend on the processor; so do backward passes.
    allowed = {
        "sample/beams.py": ["log", "log"],
        "decide/joint_scores.py": ["exp"],
        "trace/backward/layer_products.py": ["exp", "logaddexp", "exp", "exp"],
        "trace/graphs/frozen_products.py": ["tanh", "exp", "exp", "exp"],
    }
    assert {path: names for path, names in found.items() if names} == allowed


def test_a_field_is_of_the_library_of_its_class() -> None:
    """``dataclasses.field`` in a Struct would silently become the default value of a field."""
    wrong = []
    for path in FILES:
        nodes = list(ast.walk(tree(path)))
        imported = {one.module for one in nodes if isinstance(one, ast.ImportFrom) and _names(one, "field")}
        for node in nodes:
            if isinstance(node, ast.ClassDef) and any(map(_makes_field, node.body)):
                expected = {"dataclasses"} if _is_dataclass(node) else {"msgspec"}
                wrong += [node.name] if imported != expected else []
    assert wrong == []


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(one).startswith("dataclass") for one in node.decorator_list)


def _names(node: ast.ImportFrom, name: str) -> bool:
    return any(one.name == name for one in node.names)


def _makes_field(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.AnnAssign) else None
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "field"


def test_every_folder_says_what_it_holds() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            assert ast.get_docstring(tree(path)), path


FILE = r"[\w{},./*-]*(?:\.(?:py|js|css|html|txt)|/)"
"""A file or a folder at the beginning of a line in a list of files."""


def test_no_docstring_of_a_folder_lists_its_files() -> None:
    """A list becomes wrong without a notice. Each file says at its top what is in the file."""
    for path in FILES:
        if path.name == "__init__.py":
            listed = re.findall(rf"^ *{FILE}(?:,? |$)", ast.get_docstring(tree(path)) or "", re.MULTILINE)
            assert not listed, f"{path} lists {listed}"


def test_indexes_name_every_page() -> None:
    for index in (ROOT / "docs").rglob("README.md"):
        pages = [*index.parent.glob("*.md"), *index.parent.glob("guides/*.md")]
        named = set(re.findall(r"\]\(([\w/.-]+\.md)\)", index.read_text()))
        assert {str(page.relative_to(index.parent)) for page in pages if page != index} <= named


def test_files_that_are_named_exist() -> None:
    """Checks docstrings, comments and documents: ``plan/block.py``, `sample/chain.py`, or any unambiguous name."""
    known = {
        str(path.relative_to(folder))
        for part in ("src", "tests", "bench", "docs", "packaging")
        for path in (ROOT / part).rglob("*.py")
        for folder in (ROOT, SOURCE, ROOT / "src")
        if path.is_relative_to(folder)
    }
    documents = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")]
    for path in (*FILES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("bench/*.py"), *documents):
        for name in re.findall(r"`([\w/]+\.py)`", path.read_text()):
            if name not in OTHERS:
                assert any(one == name or one.endswith(f"/{name}") for one in known), f"{path} names {name}"


PRIVATE_IN_TESTS = {"unit/kernels/test_elf.py": "where the linker puts sections, and instructions of another machine"}
"""Test modules that use private names, and what no public name shows."""


def test_tests_use_public_names() -> None:
    """Tests read, replace and import no private name of the package. Oracles may, because they run other libraries."""
    known = {name for path in FILES for name in re.findall(r"\b_[a-zA-Z]\w*\b", path.read_text()) if name[-1] != "_"}
    known -= {"_replace", "_asdict", "_fields", "_obj", "_exit"}  # of namedtuple, ctypes and os
    found = dict[str, list[str]]()
    for path in sorted((ROOT / "tests").rglob("*.py")):
        name = path.relative_to(ROOT / "tests").as_posix()
        if not name.startswith("oracles/"):
            tree = ast.parse(path.read_text())
            if private := [f"{line}: {one}" for line, one in _private_names(tree) if one in known]:
                found[name] = private
    assert found.keys() == PRIVATE_IN_TESTS.keys(), {name: found[name] for name in found.keys() - PRIVATE_IN_TESTS}


def _private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The private names that a module uses and does not define: attributes, imports, and names in strings for
    ``setattr`` and its kind.
    """
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own |= {one.attr for one in attributes if isinstance(one.ctx, ast.Store) and _is_self(one.value)}
    yield from ((one.lineno, one.attr) for one in attributes if one.attr not in own or not _is_self(one.value))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pellucid"):
            yield from ((node.lineno, one.name) for one in node.names)
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("setattr", "delattr", "getattr", "hasattr", "setitem", "patch", "object"):
                texts = [one.value for one in node.args[:2] if isinstance(one, ast.Constant)]
                yield from ((node.lineno, one.rpartition(".")[2]) for one in texts if isinstance(one, str))


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")
