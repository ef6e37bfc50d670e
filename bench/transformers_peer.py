"""transformers with weights in bfloat16. Runs in the interpreter of bench/.peers/transformers; see answering.py.

The script reads a folder with safetensors, or unpacks the weights of a GGUF file.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from answering import answer
from transformers import AutoModelForCausalLM, GgufConfig


class Transformers:
    """A model and its forward steps, without the overhead of `generate`."""

    def __init__(self, path: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        where: dict[str, Any] = {"pretrained_model_name_or_path": path}
        if path.is_file():
            where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
            where["quantization_config"] = GgufConfig(dequantize=True)
        self._model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
        if {weights.dtype for weights in self._model.parameters()} != {torch.bfloat16}:
            raise RuntimeError("the weights are not in bfloat16")

    def prefill(self, tokens: int) -> float:
        """Tokens per second until the logits of the last token."""
        start = time.perf_counter()
        self._read(tokens)
        return tokens / (time.perf_counter() - start)

    def decode(self, depth: int, tokens: int) -> float:
        """Tokens per second of greedy decode."""
        out = self._read(depth)
        start = time.perf_counter()
        for _ in range(tokens):
            out = self._step(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
        return tokens / (time.perf_counter() - start)

    def _read(self, tokens: int) -> Any:
        ids = (100 + torch.arange(tokens) % 1000) % self._model.config.vocab_size
        return self._step(ids[None], logits_to_keep=1)

    def _step(self, ids: torch.Tensor, **more: Any) -> Any:
        return self._model(ids, use_cache=True, **more)


if __name__ == "__main__":
    answer(Transformers)
