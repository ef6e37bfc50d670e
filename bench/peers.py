"""Set up the engines that Pellucid is measured against, each at its best, under bench/.peers/.

    python bench/peers.py

llama.cpp: the source that the llama-cpp-python package on PyPI carries, built for this machine (-march=native).
Needs cmake and a C++ compiler; Pellucid itself needs neither.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

FOLDER = Path(__file__).parent / ".peers"
LLAMA_BENCH = FOLDER / "llama.cpp" / "bin" / "llama-bench"
VERSION = "0.3.36"


def llama_cpp() -> None:
    """Fetch and build llama-bench."""
    source = FOLDER / "source"
    source.mkdir(parents=True, exist_ok=True)
    fetch = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", f"llama-cpp-python=={VERSION}"]
    subprocess.run([sys.executable, "-m", "pip", *fetch, "--dest", str(source)], check=True)
    archive = next(source.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    tree = source / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    build = FOLDER / "llama.cpp"
    options = [
        "GGML_NATIVE=ON",
        "LLAMA_CURL=OFF",
        "LLAMA_OPENSSL=OFF",
        "LLAMA_BUILD_TESTS=OFF",
        "LLAMA_BUILD_UI=OFF",
    ]
    configure = [
        "cmake",
        "-S",
        str(tree),
        "-B",
        str(build),
        "-DCMAKE_BUILD_TYPE=Release",
        *(f"-D{o}" for o in options),
    ]
    subprocess.run(configure, check=True)
    jobs = str(os.cpu_count() or 1)
    subprocess.run(["cmake", "--build", str(build), "-j", jobs, "--target", "llama-bench"], check=True)
    print(f"llama-bench is at {LLAMA_BENCH}")


if __name__ == "__main__":
    llama_cpp()
