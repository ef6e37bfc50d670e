"""llama.cpp's own tests of its server (tools/server/tests/unit), with Pellucid instead of llama-server.

    python tests/clients/llamacpp_client.py [URL] [FOLDER] [PYTEST ARGUMENT ...]

FOLDER is tools/server/tests of llama.cpp; by default pip fetches it in the sdist of llama-cpp-python. Each test starts
its own server (``llamacpp/server.py``), so URL is not used. ``llamacpp/expected.json`` lists the expected failures with
their reasons; any other failure is an error. The last lines are the table of docs/serving.md.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent / "llamacpp"
SDIST = "llama-cpp-python==0.3.36"
INSIDE = re.compile(r"[^/]+/vendor/llama\.cpp/(tools/server/tests|models/templates)/")
PORT = "18080"


def main() -> int:
    arguments = [one for one in sys.argv[1:] if not one.startswith("http")]
    given = bool(arguments) and Path(arguments[0]).is_dir()
    folder = Path(arguments.pop(0)) if given else fetched()
    with socket.socket() as probe:
        if not probe.connect_ex(("127.0.0.1", int(PORT))):
            raise SystemExit(f"port {PORT}: a server answers there already, which the tests would ask: stop it")
    lines = folder.resolve() / "outcomes.jsonl"
    lines.unlink(missing_ok=True)
    server = folder.resolve() / "llama-server"
    server.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "server.py"} "$@"\n')
    server.chmod(0o755)
    environment = {
        **os.environ,
        "PELLUCID_PYTHON": os.environ.get("PELLUCID_PYTHON", sys.executable),
        "LLAMA_SERVER_BIN_PATH": str(server),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), str(folder.resolve()), os.environ.get("PYTHONPATH")])),
        "ADAPTED": str(lines),
        "PORT": PORT,
    }
    command = [sys.executable, "-m", "pytest", "-p", "adapted", "-q", "-p", "no:cacheprovider", "--tb=no"]
    subprocess.run(
        [*command, "-m", "not slow", *(arguments or ["unit"])], cwd=folder, env=environment, check=False,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return reported([json.loads(line) for line in lines.read_text().splitlines()])


def fetched() -> Path:
    """The folder of the tests, from the sdist."""
    target = Path(tempfile.mkdtemp(prefix="llama-cpp-"))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    subprocess.run([*pip, SDIST, "-d", str(target)], check=True)
    (archive,) = target.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        wanted = [one for one in opened if INSIDE.match(one.name) and (one.isfile() or one.isdir())]
        opened.extractall(target, wanted)
    (found,) = target.glob("*/vendor/llama.cpp/tools/server/tests")
    return found


def reported(outcomes: list[dict[str, object]]) -> int:
    """Print the table. Returns 1 if a test fails that is not an expected failure."""
    reasons: dict[str, dict[str, str]] = json.loads((HERE / "expected.json").read_text())
    files, surprising = dict[str, Counter[str]](), 0
    for one in outcomes:
        file, test = str(one["file"]), str(one["test"])
        counts = files.setdefault(file, Counter())
        counts[str(one["outcome"]) + (" spared" if one["outcome"] == "passed" and one["spared"] else "")] += 1
        if one["outcome"] == "failed":
            known = reasons.get(file, {}).items()
            why = next((text for name, text in known if test.startswith(name)), None)
            counts[f"needs {why}"] += 1
            if why is None:
                surprising += 1
                print(f"unexpected: {file} {test}: {one['why']}")
    print("| file | tests | pass | pass without a comparison of texts or token counts | the others need |")
    print("|---|---|---|---|---|")
    for file, counts in sorted(files.items()):
        tests = sum(number for name, number in counts.items() if not name.startswith("needs "))
        spared = counts["passed spared"]
        said = [f"{name[6:]} ({number})" for name, number in sorted(counts.items()) if name.startswith("needs ")]
        said += [f"skipped ({counts['skipped']})"] if counts["skipped"] else []
        about = f"`{file.removeprefix('test_').removesuffix('.py')}` | {tests} | {counts['passed'] + spared}"
        print(f"| {about} | {spared} | {', '.join(said)} |")
    total = Counter(str(one["outcome"]) for one in outcomes)
    passed, failed, skipped = (total[name] for name in ("passed", "failed", "skipped"))
    print(f"{passed} of {len(outcomes)} pass, {failed} fail, {skipped} are skipped")
    return 1 if surprising else 0


if __name__ == "__main__":
    sys.exit(main())
