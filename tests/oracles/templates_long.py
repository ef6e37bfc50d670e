"""Compares the texts of published chat templates in Pellucid and in transformers.

    python tests/oracles/templates_long.py [FOLDER ...]    (make test-templates)

Templates   ``*.jinja`` in the folders; without a folder, the seventy of llama.cpp's source (``models/templates``), from
            the sdist of llama-cpp-python 0.3.36, by ``pip download``
Chats       ``tests/support/templates.py``: with and without system prompt, tools, calls, contents that are None or
            parts, reasoning, and a generation prompt
Oracle      transformers' ``apply_chat_template``: the texts are equal, or both refuse

Calls       each template writes a tool call; where the format is known, the call is parsed from the text again

Prints the differences and the number of comparisons, and exits with 1 if anything differs. Needs ``pip install
pellucid[oracles]``. Written for transformers 5.24.0: 1,668 texts are equal, and both refuse 292 (a template without
tools, a role out of turn).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import templates

from pellucid.errors import PellucidError
from pellucid.serve.chat.answer_parser import AnswerParser, assemble
from pellucid.serve.chat.chat_run import ARGUMENTS, NAME, PROBE, TOOL, call_format, call_pattern
from pellucid.serve.chat.messages import tool
from pellucid.util.paths import home

LLAMA_CPP_PYTHON = "0.3.36"
SCHEMA = TOOL["function"]["parameters"]  # type: ignore[index]


def main() -> int:
    folders = [Path(name) for name in sys.argv[1:]] or [fetched()]
    theirs_of = templates.transformers_chat()
    if theirs_of is None:
        sys.exit("transformers is not installed: pip install 'pellucid[oracles]'")
    same = refused = different = 0
    times = list[float]()
    for path, source in sources(folders):
        for at, messages in enumerate(templates.CONVERSATIONS):
            for tools in (None, [templates.TOOL]):
                for prompt in (True, False):
                    try:
                        theirs = theirs_of(source, messages, tools, add_generation_prompt=prompt)
                    except Exception as error:
                        theirs, why = None, error
                    began = time.perf_counter()
                    try:
                        ours = templates.chat(source, messages, tools, add_generation_prompt=prompt)
                        times.append(time.perf_counter() - began)
                    except PellucidError as error:
                        ours, why = None, error
                    if ours != theirs:
                        different += 1
                        print(f"{path.name}, conversation {at}, tools {bool(tools)}: {ours!r} {theirs!r}")
                        print(f"    {why!r}" if None in (ours, theirs) else "")
                    elif ours is None:
                        refused += 1
                    else:
                        same += 1
    print(
        f"{same:,} texts are the same, {refused:,} are refused by both, {different:,} differ; "
        f"{1000 * statistics.median(times):.2f} ms each"
    )
    return 1 if different + misread_calls(folders) else 0


def misread_calls(folders: list[Path]) -> int:
    """Number of templates whose tool calls are parsed wrongly. Prints the known formats."""
    known, unknown, wrong = list[str](), list[str](), 0
    for path, source in sources(folders):
        try:
            written = templates.chat(source, PROBE, [TOOL], add_generation_prompt=False)
        except PellucidError:
            written = ""
        calls = call_format(source, written)
        if calls is None:
            unknown += [path.stem] if "tools" in source else []
            continue
        known.append(f"{path.stem} ({calls.name})")
        found = call_pattern(calls).search(written)
        if not found:  # its control tokens identify the format
            continue
        parser = AnswerParser(None, False, calls, {NAME: tool("tools[0]", NAME, None, SCHEMA)})
        text = written[found.start() :]
        answer = assemble(part for at in range(len(text)) for part in parser.push(text[at], last=at == len(text) - 1))
        if [(one.name, json.loads(one.arguments)) for one in answer.calls] != [(NAME, ARGUMENTS)]:
            wrong += 1
            print(f"{path.name}: read as {answer}")
    print(f"calls of {len(known)} templates are read: {', '.join(known)}")
    print(f"of {len(unknown)} they are not known: {', '.join(unknown)}")
    return wrong


def sources(folders: list[Path]) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.jinja")):
            yield path, path.read_text(encoding="utf-8")


def fetched() -> Path:
    """The folder of llama.cpp's templates; downloads it if it is missing."""
    folder = home() / "oracles" / "templates"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        name = f"llama_cpp_python-{LLAMA_CPP_PYTHON}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, f"llama-cpp-python=={LLAMA_CPP_PYTHON}"], cwd=folder, check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as tar:
            inside = f"{name}/vendor/llama.cpp/models/templates/"
            tar.extractall(folder, [m for m in tar if m.name.startswith(inside)], filter="data")
        (folder / f"{name}.tar.gz").unlink()
    return folder


if __name__ == "__main__":
    sys.exit(main())
