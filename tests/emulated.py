"""Runs Pellucid for aarch64 Linux on an x86-64 machine: qemu's user-mode emulation, with Debian's Python for arm64.

    python tests/emulated.py                        compare results of tiny models, bit by bit, with this machine's
    python tests/emulated.py --cpu neoverse-n1      the same for another processor (``qemu-aarch64 -cpu help``)
    python tests/emulated.py --wheel dist/….whl     the same for a wheel instead of the source
    python tests/emulated.py --tests tests/unit/weights    run tests instead

The first call makes a folder with Python and the packages; it needs ``qemu-user``, ``dpkg`` and ``gpgv``, and Debian's
keyring (``apt-get install qemu-user gpgv debian-archive-keyring``), but no root rights. Emulated programs see the files
of this machine. Only the files of the system come from the folder, through qemu's option ``-L``.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import requires
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MIRROR, SUITE = "http://deb.debian.org/debian", "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PYTHON, GLIBC = "3.13", 41  # of the suite; wheels for manylinux_2_17 up to this glibc can be installed
PACKAGES = (f"python{PYTHON}", "libstdc++6", "tzdata")
MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"form": "Q4_0"},
    "qwen3_moe": {"form": "Q8_0"},
    "granitemoehybrid": {"kind": "safetensors"},
}
"""Families of the compared models: a dense decoder, a mixture of experts, and layers with a recurrent state."""


def main() -> int:
    options = _options()
    if options.results:
        for line in results():
            print(line, flush=True)
        return 0
    folder = options.folder.absolute()
    python, site = emulated_python(folder), packages(folder, options.wheel)
    variables = {**os.environ, "PELLUCID_HOME": str(folder / "home")}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), *map(str, site)])
    if options.cpu:
        variables["QEMU_CPU"] = options.cpu
    if options.tests:
        command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *options.tests]
        return subprocess.run(command, cwd=ROOT, env=variables).returncode
    inner = [str(Path(__file__).absolute()), "--results"]
    here = _lines([sys.executable, *inner], dict(os.environ))
    there = _lines([str(python), *inner], variables)
    for name, value in here.items():
        print(f"{name:40} {value}  {'same' if there.get(name) == value else there.get(name, 'missing')}")
    return 0 if here == there else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-aarch64")
    parser.add_argument("--cpu", help="the processor to emulate (default: all features that qemu knows)")
    parser.add_argument("--wheel", type=Path, help="a wheel of Pellucid to run instead of the source")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, help="arguments of pytest")
    parser.add_argument("--results", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _lines(command: Sequence[str], variables: Mapping[str, str]) -> dict[str, str]:
    done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed")
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


def results() -> Iterator[str]:
    """Names of results, each with the hash of the result."""
    from bits import add

    import pellucid
    from pellucid.testing import random_model

    drawn: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "top_k": 0, "seed": 5, "ignore_eos": True}
    with tempfile.TemporaryDirectory() as folder:
        for family, form in MODELS.items():
            path = Path(folder) / (family if form.get("kind") else f"{family}.gguf")
            random_model(family, path, **form)
            for precise in (False, True):
                with pellucid.load(path, threads=2, precise=precise) as llm:
                    made = llm.generate("to see that it rains in the east", max_new_tokens=24, logprobs=4, **drawn)
                    scored = llm.score("The tower of the old town was built in 1423.", top=3)
                    with llm.trace("blocks.*.residual", "project.logits") as trace:
                        llm.generate("Hi", max_new_tokens=4, temperature=0, ignore_eos=True)
                    found = {
                        "generation": (made.ids, vars(made.logprobs)),
                        "score": vars(scored.logprobs),
                        "trace": {name: trace[name] for name in trace},
                    }
                for name, value in found.items():
                    digest = hashlib.sha256()
                    add(digest, value)
                    yield f"{family}{' precise' if precise else ''}, {name} {digest.hexdigest()[:16]}"


def emulated_python(folder: Path) -> Path:
    """A program that runs Debian's Python for arm64. Made if it does not exist.

    It is a script, so programs that start ``sys.executable`` run the emulation too.
    """
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None:
        raise SystemExit("qemu-aarch64 is missing: apt-get install qemu-user")
    system = folder / "system"
    launcher = system / "usr" / "bin" / "python"  # beside python3.13, so that Python finds its library
    if launcher.exists():
        return launcher
    shutil.rmtree(system, ignore_errors=True)  # unfinished
    _make_system(system)
    launcher.write_text(f'#!/bin/sh\nexec {qemu} -L {system} -0 {launcher} {launcher}{PYTHON} "$@"\n')
    launcher.chmod(0o755)
    return launcher


def packages(folder: Path, wheel: Path | None) -> list[Path]:
    """Folders to import from: the source and its dependencies for arm64, or a wheel with the wheel's dependencies."""
    if wheel is not None:
        site = folder / "wheel"
        shutil.rmtree(site, ignore_errors=True)
        _pip([f"{wheel}[test]"], site)
        return [site]
    site = folder / "source"
    if not site.exists():
        listed = (one.partition(";") for one in requires("pellucid") or ())
        _pip([name for name, _, marker in listed if "extra" not in marker or "test" in marker], site)
    return [ROOT / "src", site]


def _pip(wanted: Sequence[str], target: Path) -> None:
    """Install wheels for arm64 with this machine's pip."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(GLIBC, 16, -1)]
    abis = [f"--abi=cp{PYTHON.replace('.', '')}", "--abi=abi3", "--abi=none"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--only-binary=:all:"]
    command += [f"--target={target}", f"--python-version={PYTHON}", "--implementation=cp"]
    command += [*platforms, "--platform=manylinux2014_aarch64", *abis, *wanted]
    subprocess.run(command, check=True)


def _make_system(target: Path) -> None:
    """Unpack ``PACKAGES`` of Debian and what they depend on. Hashes are checked up to Debian's signature."""
    release = _fetch(f"dists/{SUITE}/InRelease")
    with tempfile.NamedTemporaryFile() as signed:
        signed.write(release)
        signed.flush()
        text = subprocess.run(
            ["gpgv", "--quiet", "--keyring", str(KEYRING), "--output", "-", signed.name],
            check=True, stdout=subprocess.PIPE,
        ).stdout.decode()  # fmt: skip
    index = "main/binary-arm64/Packages.xz"
    digest = re.search(rf"^ ([0-9a-f]{{64}}) +\d+ {re.escape(index)}$", text, re.MULTILINE)
    if digest is None:
        raise SystemExit(f"{MIRROR}: {SUITE} has no {index}")
    listed = lzma.decompress(_fetch(f"dists/{SUITE}/{index}", digest[1])).decode()
    known = {entry["Package"]: entry for entry in map(_fields, listed.split("\n\n")) if "Package" in entry}
    (target / "usr" / "lib").mkdir(parents=True)
    # Debian makes this link in base-files, which nothing else here needs.
    (target / "lib").symlink_to("usr/lib")
    for entry in _closure(known):
        with tempfile.NamedTemporaryFile(suffix=".deb") as package:
            package.write(_fetch(entry["Filename"], entry["SHA256"]))
            package.flush()
            subprocess.run(["dpkg-deb", "--extract", package.name, str(target)], check=True)


def _fields(paragraph: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+): (.*)$", paragraph, re.MULTILINE))


def _closure(known: Mapping[str, Mapping[str, str]]) -> Iterator[Mapping[str, str]]:
    """The entries of ``PACKAGES`` and of their dependencies. The first of several alternatives is taken."""
    waiting, seen = list(PACKAGES), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in known:  # a virtual package
            continue
        seen.add(name)
        yield known[name]
        for field in ("Depends", "Pre-Depends"):
            waiting += re.findall(r"(?:^|, )([a-z0-9][a-z0-9+.-]*)", known[name].get(field, ""))


def _fetch(path: str, sha256: str | None = None) -> bytes:
    with urllib.request.urlopen(f"{MIRROR}/{path}") as response:
        content: bytes = response.read()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise SystemExit(f"{MIRROR}/{path} has a wrong SHA-256: try again later")
    return content


if __name__ == "__main__":
    sys.exit(main())
