"""The float32 run of a GGUF file's weights by transformers, the reference for every other run of the file.

    python bench/float32.py FILE IDS.npy OUT THREADS

Runs in the interpreter of bench/.peers/transformers. IDS are windows of tokens, (W, N) int32. OUT has the format that
llama-perplexity writes for --kl-divergence-base. It has the windows, and the log-probabilities of the whole vocabulary
for the second half of each window except its last token. Log-probabilities are rounded to 65,536 steps between the
minimum and the maximum.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GgufConfig


def main() -> None:
    """Run the model and write the file."""
    path, windows = Path(sys.argv[1]), np.load(sys.argv[2])
    torch.set_num_threads(int(sys.argv[4]))
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        attn_implementation="eager",
    )
    if {weights.dtype for weights in model.parameters()} != {torch.float32}:
        raise SystemExit("the weights are not in float32")
    count, length = windows.shape
    with open(sys.argv[3], "wb") as out:
        out.write(b"_logits_" + struct.pack("<Iii", length, model.config.vocab_size, count))
        out.write(windows.astype("<i4").tobytes())
        for window in windows:
            logits = model(torch.from_numpy(window.astype(np.int64))[None]).logits[0]
            for row in logits[length // 2 : length - 1].double().log_softmax(-1).numpy():
                least, largest = np.float32(row.min()), np.float32(row.max())
                step = (largest - least) / np.float32(65535)
                steps = np.rint((row - np.float64(least)) / np.float64(step)).clip(0, 65535).astype("<u2")
                out.write(struct.pack("<ff", step, least) + steps.tobytes() + b"\0\0" * (len(row) % 2))


if __name__ == "__main__":
    main()
