"""Encoders of sentences in torch, ONNX Runtime and OpenVINO. Runs in the interpreter of bench/.peers/encoders.

    encoder_peer.py MODEL THREADS ENGINE CONTEXT CACHE

ENGINE is a name in ENGINES. A request is a line of JSON (see answering.py):

    {"embed": FILE, "out": FILE}   embed the texts of a JSON file, and write the vectors to a .npy file
    {"query": TEXT}                embed one text

The answer is {"seconds": ...}, tokenization included. Texts are sorted by length and run in batches of 32, as the
libraries do. ONNX files are exported with torch, with fused operators, and kept in the folder CACHE.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from answering import serve
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

BATCH = 32
Run = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""(token ids, attention mask), both (B, T) → vectors (B, D)."""


class Encoder(ABC):
    """A model in an engine."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (B, D) of texts."""


class Torch(Encoder):
    """sentence-transformers."""

    def __init__(self, model: Path, threads: int, context: int, cache: Path, dtype: str) -> None:
        torch.set_num_threads(threads)
        self._model = loaded(model, dtype=getattr(torch, dtype))
        self._model.max_seq_length = context

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        made = self._model.encode(list(texts), batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(made, np.float32)


class Exported(Encoder):
    """A model that was exported to ONNX."""

    def __init__(self, model: Path, context: int) -> None:
        tokenizer = loaded(model).tokenizer
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(context)
        self._padding = tokenizer.pad_token_id or 0
        self._run: Run

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        ids = [one.ids for one in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        found: list[Any] = [None] * len(ids)
        for first in range(0, len(ids), BATCH):
            numbers = order[first : first + BATCH]
            width = len(ids[numbers[0]])
            tokens = np.full((len(numbers), width), self._padding, np.int64)
            mask = np.zeros_like(tokens)
            for row, number in enumerate(numbers):
                tokens[row, : len(ids[number])], mask[row, : len(ids[number])] = ids[number], 1
            for number, vector in zip(numbers, self._run(tokens, mask)):
                found[number] = vector
        return np.array(found, np.float32)


class OnnxRuntime(Exported):
    """ONNX Runtime, in float32 or with int8 weights and activations that are quantized at run time."""

    def __init__(self, model: Path, threads: int, context: int, cache: Path, kind: str) -> None:
        import onnxruntime

        super().__init__(model, context)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = (int8_file if kind == "int8" else fused_file)(model, cache)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._run = lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


class OpenVino(Exported):
    """OpenVINO in its default precision, which is bfloat16 on processors that multiply it."""

    def __init__(self, model: Path, threads: int, context: int, cache: Path) -> None:
        import openvino

        super().__init__(model, context)
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(plain_file(model, cache)), "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._run = lambda ids, mask: compiled({"input_ids": ids, "attention_mask": mask})[0]


ENGINES: dict[str, Callable[[Path, int, int, Path], Encoder]] = {
    "torch float32": partial(Torch, dtype="float32"),
    "torch bfloat16": partial(Torch, dtype="bfloat16"),
    "ONNX Runtime float32": partial(OnnxRuntime, kind="float32"),
    "ONNX Runtime int8": partial(OnnxRuntime, kind="int8"),
    "OpenVINO": OpenVino,
}


def loaded(model: Path, **settings: Any) -> SentenceTransformer:
    """The model in sentence-transformers."""
    return SentenceTransformer(str(model), device="cpu", model_kwargs=settings).eval()


class _Pooled(torch.nn.Module):  # type: ignore[misc]
    """All modules of a model, from token ids to the vector."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self._model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        made = self._model({"input_ids": input_ids, "attention_mask": attention_mask})
        return made["sentence_embedding"]


def plain_file(model: Path, cache: Path) -> Path:
    """The model exported to ONNX."""
    file = cache / "plain.onnx"
    if not file.exists():
        pooled = _Pooled(loaded(model, attn_implementation="eager"))
        ids = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
        names, sizes = ["input_ids", "attention_mask"], {0: "batch", 1: "tokens"}
        with torch.no_grad():
            torch.onnx.export(
                pooled,
                (ids, (ids > 0).long()),
                str(file),
                input_names=names,
                output_names=["vectors"],
                dynamic_axes={**dict.fromkeys(names, sizes), "vectors": {0: "batch"}},
                opset_version=17,
                dynamo=False,
            )
    return file


def fused_file(model: Path, cache: Path) -> Path:
    """The model with the fused operators of ONNX Runtime, where its optimizer knows the architecture."""
    file = cache / "fused.onnx"
    if not file.exists():
        from onnxruntime.transformers.optimizer import optimize_model

        config = json.loads((model / "config.json").read_text("utf-8"))
        heads, width = config["num_attention_heads"], config["hidden_size"]
        optimized = optimize_model(str(plain_file(model, cache)), "bert", num_heads=heads, hidden_size=width)
        optimized.save_model_to_file(str(file))
    return file


def int8_file(model: Path, cache: Path) -> Path:
    """The model in int8: weights with a scale for each output, which is closer to float32 than one scale for all."""
    file = cache / "int8.onnx"
    if not file.exists():
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(fused_file(model, cache)),
            str(file),
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    return file


def reply(encoder: Encoder, wish: dict[str, Any]) -> dict[str, Any]:
    """Answer a request."""
    texts = json.loads(Path(wish["embed"]).read_text("utf-8")) if "embed" in wish else [wish["query"]]
    start = time.perf_counter()
    vectors = encoder.embed(texts)
    seconds = time.perf_counter() - start
    if "out" in wish:
        np.save(wish["out"], vectors)
    return {"seconds": seconds}


def main() -> None:
    model, threads, engine, context, cache = sys.argv[1:]
    folder = Path(cache)
    folder.mkdir(parents=True, exist_ok=True)
    serve(lambda: ENGINES[engine](Path(model), int(threads), int(context), folder), reply)


if __name__ == "__main__":
    main()
