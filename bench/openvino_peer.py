"""OpenVINO GenAI on a GGUF file. Runs in the interpreter of bench/.peers/openvino; see answering.py.

The pipeline has a prefix cache, which would skip the prefill of a prompt that begins like an earlier prompt. Every
prompt of this script therefore begins with a different token.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from answering import answer


class OpenVino:
    """A pipeline on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        self._pipeline = genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=threads)
        self._vocabulary = len(self._pipeline.get_tokenizer().get_vocab())
        self._numbers = count()

    def prefill(self, tokens: int) -> float:
        """Tokens per second until the first token, by the pipeline's own metrics."""
        metrics = self._generate(tokens, 1)
        return float(tokens / metrics.get_ttft().mean * 1e3)

    def decode(self, depth: int, tokens: int) -> float:
        """Tokens per second after the first token, by the pipeline's own metrics."""
        metrics = self._generate(depth, tokens + 1)
        return float(1e3 / metrics.get_tpot().mean)

    def _generate(self, depth: int, new: int) -> genai.PerfMetrics:
        ids = (100 + 37 * next(self._numbers) + 7 * np.arange(depth, dtype=np.int64)) % self._vocabulary
        prompt = genai.TokenizedInputs(ov.Tensor(ids[None]), ov.Tensor(np.ones((1, depth), np.int64)))
        config = genai.GenerationConfig(max_new_tokens=new, min_new_tokens=new, ignore_eos=True, do_sample=False)
        result = self._pipeline.generate(prompt, config)
        if len(result.tokens[0]) != new:
            raise RuntimeError(f"{len(result.tokens[0])} tokens were made, not {new}")
        return result.perf_metrics


if __name__ == "__main__":
    answer(OpenVino)
