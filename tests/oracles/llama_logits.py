"""The logits of llama.cpp for every position of one text, on the CPU, from its shared libraries.

``llama_logits`` runs this file in its own process, because a failed assertion of ggml ends the process:

    python tests/oracles/llama_logits.py BINDINGS MODEL.gguf IDS.npy LOGITS.npy

BINDINGS is the folder llama_cpp of the llama-cpp-python source package; LLAMA_CPP_LIB_PATH names the folder with
libllama.so, built from that package's vendor/llama.cpp. All tokens are one batch; keys and values are float32, without
flash attention, on one thread.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ERROR = 4  # GGML_LOG_LEVEL_ERROR
ROOM = 256  # smallest context in tokens, because llama.cpp rounds up to a multiple


class LlamaCppError(Exception):
    """llama.cpp refused the model or ended the process."""


def llama_logits(model: Path, ids: list[int], bindings: Path, library: Path) -> np.ndarray:
    """Logits (T, V) float32 of the tokens. Raises LlamaCppError with the line that names the reason."""
    with TemporaryDirectory() as scratch:
        tokens, logits = Path(scratch) / "ids.npy", Path(scratch) / "logits.npy"
        np.save(tokens, np.array(ids, np.int32))
        done = subprocess.run(
            [sys.executable, __file__, str(bindings), str(model), str(tokens), str(logits)],
            env={**os.environ, "LLAMA_CPP_LIB_PATH": str(library.resolve()), "GGML_NO_BACKTRACE": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise LlamaCppError(reason(done.stderr) or f"llama.cpp ended with status {done.returncode}")
        return np.load(logits)


def reason(errors: str) -> str:
    """The first line that names an assertion or an error, else the last line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"GGML_ASSERT|error\b", line)]
    return (telling or lines[-1:] or [""])[0]


def bound(bindings: Path) -> Any:
    """The module llama_cpp.llama_cpp without the package's own imports, which need more packages."""
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(bindings)]
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def run(lib: Any, path: str, ids: list[int]) -> np.ndarray:
    @lib.llama_log_callback
    def log(level: int, text: bytes, _: Any) -> None:
        if level == ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    lib.llama_log_set(log, ctypes.c_void_p())
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    if not model:
        raise LlamaCppError("the model is not loaded")
    wanted = lib.llama_context_default_params()
    wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = ROOM
    wanted.n_threads = wanted.n_threads_batch = 1
    wanted.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    wanted.type_k = wanted.type_v = lib.GGML_TYPE_F32
    context = lib.llama_init_from_model(model, wanted)
    if not context:
        raise LlamaCppError("no context")
    T, V = len(ids), lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch = lib.llama_batch_init(T, 0, 1)
    batch.n_tokens = T
    for t in range(T):
        batch.token[t], batch.pos[t], batch.logits[t] = ids[t], t, 1
        batch.n_seq_id[t], batch.seq_id[t][0] = 1, 0
    if status := lib.llama_decode(context, batch):
        raise LlamaCppError(f"llama_decode returned {status}")
    rows = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(rows, (T, V)).copy()


def main() -> None:
    bindings, model, ids, logits = sys.argv[1:]
    try:
        found = run(bound(Path(bindings)), model, np.load(ids).tolist())
    except LlamaCppError as error:
        sys.exit(str(error))
    np.save(logits, found)


if __name__ == "__main__":
    main()
