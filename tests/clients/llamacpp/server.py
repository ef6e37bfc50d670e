"""Replaces llama-server: runs ``pellucid serve`` with the corresponding options.

Models of the catalogue replace the story models that llama.cpp's tests download. PELLUCID_PYTHON is the interpreter of
Pellucid. Options without a counterpart are printed and ignored.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

INSTEAD = (
    ("infill", "qwen2.5-coder-0.5b"),
    ("qwen2.5-coder", "qwen2.5-coder-0.5b"),
    ("anthropic", "qwen2.5-coder-0.5b"),  # tools, which smollm2's template does not have
    ("tool-call", "qwen2.5-coder-0.5b"),
    ("bge", "minilm"),
    ("reranker", "minilm"),
    ("", "smollm2"),
)
"""(word, model): the first word that occurs in the requested name selects the model."""
VALUES = (
    *("port", "host", "model", "model-url", "hf-repo", "hf-file", "alias", "ctx-size", "parallel", "threads"),
    *("api-key", "chat-template-file", "model-draft"),
)
FLAGS = ("kv-unified", "offline", "jinja", "no-jinja", "no-slots", "slots", "embedding", "reranking", "cont-batching")


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in VALUES:
        parser.add_argument(f"--{name}")
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    asked, others = parser.parse_known_args()
    print("passed over:", *others, file=sys.stderr)
    python = os.environ["PELLUCID_PYTHON"]
    wanted = " ".join(filter(None, [asked.hf_repo, asked.hf_file, asked.model, asked.model_url, asked.alias])).lower()
    name = next(model for word, model in INSTEAD if word in wanted)
    folder = Path(tempfile.mkdtemp(prefix="llama-server-"))
    alias = sorted((asked.alias or "model").split(","))[0]
    (folder / alias).symlink_to(resolved(python, name))
    command = [python, "-m", "pellucid", "serve", alias, "--any-model", "--port", asked.port or "8080"]
    command += ["--host", (asked.host or "127.0.0.1").split(",")[0]]
    if asked.ctx_size:  # llama-server divides the context among its slots
        slots = 1 if asked.kv_unified else int(asked.parallel or 1)
        command += ["--context", str(int(asked.ctx_size) // slots)]
    for option in ("threads", "api-key", "chat-template-file"):
        if value := getattr(asked, option.replace("-", "_")):
            ours = {"api-key": "--key", "chat-template-file": "--chat-template"}.get(option, f"--{option}")
            command += [ours, os.path.abspath(value) if os.path.exists(value) else value]
    os.chdir(folder)
    os.execv(python, command)


def resolved(python: str, name: str) -> str:
    """The path of a model of the catalogue."""
    code = "import sys; from pellucid.weights.store import resolve; print(resolve(sys.argv[1]))"
    return subprocess.run([python, "-c", code, name], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
