"""Installs and drives the peers, the engines that Pellucid is compared with. Each peer has a folder in bench/.peers/.

    python bench/peers.py [NAME...]     # installs the missing peers; does not need Pellucid

llama.cpp      the source in the llama-cpp-python package on PyPI, built for this machine (-march=native); needs cmake
               and a C++ compiler. LLAMA_CPP=FOLDER names existing binaries.
ik_llama.cpp   a fork of llama.cpp with its own kernels. It is measured if IK_LLAMA_CPP=FOLDER names its binaries.
openvino       OpenVINO GenAI in a virtual environment, driven by openvino_peer.py
transformers   transformers with torch in a virtual environment, weights in bfloat16, driven by transformers_peer.py
encoders       sentence-transformers, ONNX Runtime and OpenVINO in a virtual environment, driven by encoder_peer.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = HERE / ".peers"
LLAMA_CPP_PYTHON = "0.3.36"
# Tokens of the untimed prompt before the timed prompt in llama-bench.
WARM_UP = 64
# llama.cpp rounds the context of a sequence up to a multiple of this number.
CELLS = 256
# Seconds until a peer that does not answer counts as failed.
PATIENCE = 600


class PeerError(Exception):
    """A peer cannot be installed, cannot read a file, or has failed."""


class Engine(ABC):
    """A peer with a model. Methods return tokens per second of the workloads of `pellucid.measure.suite`."""

    @abstractmethod
    def prefill(self, tokens: int) -> float:
        """Prefill of a prompt."""

    @abstractmethod
    def decode(self, depth: int, tokens: int, sequences: int) -> float:
        """Decode of ``tokens`` tokens after ``depth``, in a batch of ``sequences``."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Release the model."""


class Peer(ABC):
    """An engine that can be installed and that opens models."""

    name: str
    installable = True  # from a package registry

    @abstractmethod
    def ready(self) -> bool:
        """True if the peer is installed."""

    @abstractmethod
    def setup(self) -> None:
        """Download and build the peer."""

    @abstractmethod
    def open(self, model: Path, threads: int) -> Engine:
        """Open a model. Raises PeerError if the peer cannot read it."""


class LlamaCpp(Peer):
    """llama.cpp, measured by its own benchmark tools."""

    name = "llama.cpp"
    variable = "LLAMA_CPP"
    untidy = False  # True if tools print results to standard error too, and write a log file
    tools: tuple[str, ...] = ("llama-bench", "llama-batched-bench", "llama-quantize", "llama-perplexity")
    more: tuple[str, ...] = ("llama-server",)  # built too; only bench/encoders.py needs it

    @property
    def build(self) -> Path:
        """The build folder."""
        return FOLDER / self.name

    @property
    def binaries(self) -> Path:
        """The folder of the tools."""
        return Path(os.environ.get(self.variable, self.build / "bin")).resolve()

    def ready(self) -> bool:
        return all((self.binaries / tool).exists() for tool in self.tools)

    def setup(self) -> None:
        if self.variable in os.environ:
            raise PeerError(f"the folder that {self.variable} names lacks one of {', '.join(self.tools)}")
        tree = self._source()
        options = ["CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF"]
        options += ["LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_UI=OFF"]
        _run("cmake", "-S", tree, "-B", self.build, *(f"-D{option}" for option in options))
        _run("cmake", "--build", self.build, "--parallel", os.cpu_count() or 1, "--target", *self.tools, *self.more)

    def _source(self) -> Path:
        folder = FOLDER / "source"
        folder.mkdir(parents=True, exist_ok=True)
        wanted = ["--no-deps", "--no-binary", ":all:", f"llama-cpp-python=={LLAMA_CPP_PYTHON}"]
        _run(sys.executable, "-m", "pip", "download", *wanted, "--dest", folder)
        archive = folder / f"llama_cpp_python-{LLAMA_CPP_PYTHON}.tar.gz"
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"

    def open(self, model: Path, threads: int) -> Engine:
        return _LlamaBench(self, model, threads)

    def quantize(self, source: Path, target: Path, kind: str) -> None:
        """Write ``source`` to ``target`` with weights in the format ``kind``."""
        target.parent.mkdir(exist_ok=True)
        part = target.with_suffix(".part")
        self.tool("llama-quantize", "--allow-requantize", source, part, kind)
        part.replace(target)

    def tool(self, name: str, *arguments: object) -> str:
        """The output of a tool."""
        path = str(self.binaries)
        return _printed(name, self.binaries / name, *arguments, untidy=self.untidy, LD_LIBRARY_PATH=path)


class IkLlamaCpp(LlamaCpp):
    """A fork of llama.cpp. No package registry has its source, so it is used only where it has been built."""

    name = "ik_llama.cpp"
    variable = "IK_LLAMA_CPP"
    tools = ("llama-bench", "llama-batched-bench")
    installable = False
    untidy = True

    def setup(self) -> None:
        raise PeerError("build it, and name the folder of its binaries: IK_LLAMA_CPP=FOLDER")

    def open(self, model: Path, threads: int) -> Engine:
        return _IkLlamaBench(self, model, threads)


class _LlamaBench(Engine):
    """llama-bench, which runs in a new process for each figure and loads a model in less than a second."""

    def __init__(self, peer: LlamaCpp, model: Path, threads: int) -> None:
        self._peer = peer
        self._model = ("-m", model.resolve(), "-t", threads)

    def prefill(self, tokens: int) -> float:
        # The tool's own warm-up runs the whole prompt, which takes as long as the timed run.
        return self._bench("-p", f"{WARM_UP},{tokens}", "-n", 0, *self._cold)

    def decode(self, depth: int, tokens: int, sequences: int) -> float:
        if sequences == 1:
            return self._bench(*self._after(depth, tokens))
        context = sequences * -(-(depth + tokens) // CELLS) * CELLS
        work = ("-c", context, "-npp", depth, "-ntg", tokens, "-npl", sequences)
        return self._together(self._peer.tool("llama-batched-bench", *self._model, *work, *self._printing))

    _printing: tuple[str, ...] = ("--output-format", "jsonl")
    _cold: tuple[object, ...] = ("--no-warmup",)

    def _after(self, depth: int, tokens: int) -> tuple[object, ...]:
        """The options for ``tokens`` tokens after a context of ``depth`` tokens."""
        return ("-p", 0, "-n", tokens, "-d", depth)

    def _together(self, printed: str) -> float:
        """The speed of generation that llama-batched-bench prints."""
        lines = [line for line in printed.splitlines() if line.startswith("{")]
        return float(json.loads(lines[-1])["speed_tg"])

    def _bench(self, *work: object) -> float:
        printed = self._peer.tool("llama-bench", *self._model, *work, "-r", 1, "-o", "json")
        first, last = printed.index("[\n"), printed.rindex("]") + 1
        return float(json.loads(printed[first:last])[-1]["avg_ts"])


class _IkLlamaBench(_LlamaBench):
    """The fork's tools, with options of an older llama.cpp."""

    _printing = ()
    _cold = ("-w", 0)

    def _after(self, depth: int, tokens: int) -> tuple[object, ...]:
        return ("-p", 0, "-n", 0, "-gp", f"{depth},{tokens}")

    def _together(self, printed: str) -> float:
        """The column S_TG t/s of the table's last row."""
        rows = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines() if line.startswith("|")]
        return float(rows[-1][rows[0].index("S_TG t/s")])


class Packages(Peer):
    """Python packages in a virtual environment, and the script that drives them."""

    def __init__(self, name: str, script: str, *pins: str) -> None:
        self.name, self.script, self.pins = name, HERE / script, pins
        self.venv = FOLDER / name

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.venv / "bin" / "python"

    def ready(self) -> bool:
        return self.python.exists() and all(self._installed(*pin.split("==")) for pin in self.pins)

    def _installed(self, package: str, version: str) -> bool:
        folder = f"{package.replace('-', '_')}-{version}*.dist-info"  # torch-2.13.0+cpu counts as 2.13.0
        return any(self.venv.glob(f"lib/python*/site-packages/{folder}"))

    def setup(self) -> None:
        _run(sys.executable, "-m", "venv", self.venv)
        _run(self.python, "-m", "pip", "install", "--disable-pip-version-check", *self.pins)

    def open(self, model: Path, threads: int) -> Engine:
        return _Process(self, model, threads)

    def run(self, script: str, *arguments: object) -> str:
        """The output of another script."""
        return _printed(script, self.python, HERE / script, *arguments)


class Script:
    """A script that holds a model and answers each line of JSON with a line of JSON (answering.py)."""

    def __init__(self, peer: Packages, threads: int, *arguments: object) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - close() closes it
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [str(word) for word in (peer.python, peer.script, *arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            file.close()

    def ask(self, **wish: Any) -> dict[str, Any]:
        """The answer to a request. Raises PeerError if it is an error."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(wish) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; _answer reports it
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        alarm = threading.Timer(PATIENCE, self._process.kill)
        alarm.start()
        line = self._process.stdout.readline()
        alarm.cancel()
        if not line:
            self._errors.seek(0)
            raise PeerError(f"the process has ended: {_last_line(self._errors.read())}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer


class _Process(Engine):
    """A model that generates text in a script."""

    def __init__(self, peer: Packages, model: Path, threads: int) -> None:
        self._script = Script(peer, threads, model, threads)

    def prefill(self, tokens: int) -> float:
        return self._ask(prefill=tokens)

    def decode(self, depth: int, tokens: int, sequences: int) -> float:
        if sequences != 1:
            raise PeerError("this peer is measured with one sequence only")
        return self._ask(decode=tokens, depth=depth)

    def _ask(self, **wish: int) -> float:
        return float(self._script.ask(**wish)["tokens_per_second"])

    def close(self) -> None:
        self._script.close()


LLAMA_CPP = LlamaCpp()
IK_LLAMA_CPP = IkLlamaCpp()
OPENVINO = Packages("openvino", "openvino_peer.py", "openvino-genai==2026.4.1.0")
TRANSFORMERS = Packages(
    "transformers",
    "transformers_peer.py",
    *("torch==2.13.0", "transformers==5.24.0", "accelerate==1.15.0", "gguf==0.19.0"),
)
PEERS: dict[str, Peer] = {peer.name: peer for peer in (LLAMA_CPP, IK_LLAMA_CPP, OPENVINO, TRANSFORMERS)}
# The peers of bench/encoders.py: the engines in encoder_peer.py, in one environment.
ENCODERS = Packages(
    "encoders",
    "encoder_peer.py",
    *("torch==2.13.0", "transformers==5.24.0", "sentence-transformers==6.2.0"),
    *("onnx==1.23.2", "onnxruntime==1.32.0", "openvino==2026.4.1", "sympy==1.14.0"),
)
INSTALLABLE: dict[str, Peer] = {**PEERS, ENCODERS.name: ENCODERS}


def _run(*command: object) -> None:
    """Run a command with its output visible."""
    try:
        subprocess.run([str(word) for word in command], check=True)
    except FileNotFoundError as error:
        raise PeerError(f"{command[0]} is needed, but is not installed") from error
    except subprocess.CalledProcessError as error:
        raise PeerError(f"{Path(str(command[0])).name} failed, see above") from error


def _printed(name: str, *command: object, untidy: bool = False, **environment: str) -> str:
    """The output of a program that needs no input. With ``untidy``, also its standard error."""
    folder: AbstractContextManager[str | None] = tempfile.TemporaryDirectory() if untidy else nullcontext()
    try:
        with folder as here:
            done = subprocess.run(
                [str(word) for word in command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if untidy else subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
                timeout=PATIENCE,
                cwd=here,
                check=True,
            )
    except subprocess.CalledProcessError as error:
        raise PeerError(f"{name} failed: {_last_line(error.stderr or error.stdout)}") from error
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{name} was not finished after {PATIENCE} s") from error
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was printed"


def main() -> None:
    """Install the named peers that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(INSTALLABLE)}; all if none is given")
    names = parser.parse_args().names
    names = names or [name for name, peer in INSTALLABLE.items() if peer.installable]
    if unknown := [name for name in names if name not in INSTALLABLE]:
        parser.error(f"there is no peer {', '.join(unknown)}; there are {', '.join(INSTALLABLE)}")
    outcome: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        peer, where = INSTALLABLE[name], f"[{number}/{len(names)}] {name}"
        if peer.ready():
            outcome[name] = "was installed before"
            continue
        print(f"{where}: installing", flush=True)
        try:
            peer.setup()
            outcome[name] = "is installed" if peer.ready() else "FAILED: files are missing after the installation"
        except (PeerError, OSError, tarfile.TarError) as error:
            outcome[name] = f"FAILED: {error}"
        print(f"{where}: {outcome[name]}", flush=True)
    for name, what in outcome.items():
        print(f"{name:<14}{what}")
    if any(what.startswith("FAILED") for what in outcome.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
