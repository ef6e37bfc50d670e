"""Tiny models as GGUF, written by llama.cpp's own converter, against the logits of transformers and of llama.cpp.

    python tests/oracles/gguf_oracle.py --llama-cpp FOLDER [--library FOLDER] [NAME...]

The first FOLDER is llama.cpp's source (in the llama-cpp-python source package on PyPI: vendor/llama.cpp), the second
holds libllama.so, built from it. For the named tiny models, by default every model of tests/goldens/model/tiny whose
architecture the converter knows, the script converts the model without a vocabulary, loads it in Pellucid and runs its
40 tokens with 16-bit activations and float32 keys and values. The logits of all positions must be within 2e-4 of the
golden's, relative to the range of the logits.

With --library, llama.cpp runs the same file, and its logits must be within the same bound, except where its arithmetic
is coarser (GELU, EIGHT_BIT) or it differs from transformers (OTHERWISE). llama.cpp refuses some files (REFUSED). A file
that cannot state the whole model (INEXPRESSIBLE) is only compared with llama.cpp. The Python bindings come from the
llama-cpp-python package around the first FOLDER.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama_logits import ROOM, LlamaCppError, llama_logits
from support.tiny import DECODERS, GOLDENS, TINY, opened

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import PellucidError
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import Chunk, StepLimits
from pellucid.runtime.cache import BlockTable

MOST = 2e-4  # relative to the range of the logits
WITHOUT_GGUF = ("openai-gpt", "gptj", "opt", "falcon-many", "xglm")
"""Models that the converter does not know."""
INEXPRESSIBLE = (
    *("mistral", "mixtral", "starcoder2", "gemma2-odd", "smollm3-odd", "gpt2-odd", "phi-odd", "cohere2-odd"),
    *("qwen2_moe-odd", "qwen3_moe-odd", "olmoe-odd", "gpt_oss-odd", "gpt2-narrow", "gemma3-linear"),
    *("gemma3-scalar", "gemma3-softcap", "lfm2-odd", "falcon_h1-odd", "nemotron_h-odd", "lfm2_moe-odd"),
    *("granitemoehybrid-odd", "deepseek_v2", "qwen3_next-odd", "falcon-alibi", "falcon-alibi-odd", "mpt-odd"),
    *("llama4", "llama4-odd", "llama4-dense", "qwen2-window", "smollm3-window"),
)
"""Models that GGUF files of their families cannot describe fully. Windows, scales, caps, patterns, positions, widths,
biases or weights of experts are missing, or layers without experts among layers with experts (nemotron_h-odd).
llama.cpp ranks all groups of experts like DeepSeek V3 (deepseek_v2).
"""
REFUSED = (
    *("deepseek_v2-odd", "deepseek_v3-odd", "falcon_h1-odd", "gemma4_moe-odd", "gpt2-narrow", "gpt2-odd"),
    *("gpt_neox-odd", "lfm2_moe-odd", "olmoe", "phi-odd", "qwen3-odd", "qwen3_5-odd", "qwen3_5_moe-odd"),
    *("seed_oss-odd", "starcoder2-odd", "llama4-odd", "llama4-dense", "gemma3n"),
)
"""Models that llama.cpp refuses: queries without a low rank unless there are 26 or 27 layers (deepseek), some biases or
their absence, fewer key heads than query heads, other widths than it derives, keys shared with layers before the last
two layers with their own keys (gemma4_moe-odd), Llama 4 without experts or without a fourth layer, and Gemma 3n with
per-layer embeddings that are not 256 wide. Pellucid reads the files that describe the model fully.
"""

GELU = ("bloom", "falcon", "gemma", "gemma2", "gemma3", "gemma4", "gpt2", "gptneox", "mpt", "phi2", "starcoder2")
MOST_GELU = 5e-4
"""Architectures whose activation ggml reads from a table of 16-bit floats (GGML_GELU_FP16 in ggml-cpu/vec.h). Measured:
at most 3.2e-4; with a libggml-cpu.so built without the table 1e-6, but 1.5e-4 for Falcon and GPT-NeoX. llama.cpp
approximates their GELU by a hyperbolic tangent (LLM_FFN_GELU). Pellucid and transformers do not.
"""
EIGHT_BIT, MOST_EIGHT_BIT = ("gpt_oss-mxfp4",), 2e-2
"""Models with quantized weights: llama.cpp rounds the activations to Q8_0 (vec_dot_type in ggml-cpu/ggml-cpu.c).
Measured: 1.5e-2, and 1.6e-4 if llama.cpp has the same weights as F32.
"""
OTHERWISE = {
    "gemma4-odd": "caps the logits at 30 where the file states no cap (llama-hparams.h, models/gemma4.cpp)",
    "gpt_oss": "rounds the limits of YaRN to whole pairs (ggml_rope_yarn_corr_dims in ggml.c)",
    "phi3-odd": "ignores the window (models/phi3.cpp)",
    "qwen3-vision": "does not rotate the pairs that the sections leave over (ggml_mrope_cache_init in ops.cpp)",
}
"""Models that llama.cpp computes differently from transformers and Pellucid, and the difference."""

Reference = Callable[[Path, list[int]], np.ndarray]


def convert(source: Path, target: Path) -> str:
    """Convert a model folder to GGUF, float32, without a vocabulary. Returns the architecture's name."""
    import gguf
    import torch
    from conversion import ModelType, get_model_architecture, get_model_class
    from conversion.base import ModelBase

    hparams = ModelBase.load_hparams(source, False)
    if hparams["model_type"].startswith("gemma"):  # the converter counts the tokens
        vocabulary = {str(token): token for token in range(hparams.get("text_config", hparams)["vocab_size"])}
        tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": []}
        source = Path(shutil.copytree(source, target.with_suffix(".folder")))
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    older = with_older_keys(hparams)
    kind: Any = get_model_class(get_model_architecture(older, ModelType.TEXT))
    kind = getattr(kind, "Ministral3Model", kind)  # Mistral3Model delegates to it
    fields = {"set_vocab": without_vocabulary, "model_arch": kind.model_arch, "no_mtp": True}
    bare = type("Bare", (kind,), fields)
    with torch.inference_mode():
        model = bare(source, gguf.LlamaFileType.ALL_F32, target, eager=True, hparams=older)
        model.write()
    return gguf.MODEL_ARCH_NAMES[model.model_arch]


def without_vocabulary(model: Any) -> None:
    """Write the fields that llama.cpp needs to load a model without a vocabulary."""
    model.gguf_writer.add_tokenizer_model("none")
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])


def with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the keys of older versions of transformers, which the converter reads.

    It also has the keys that the published files of a family state.
    """
    rope = config.get("rope_parameters") or {}
    made = {"rotary_pct": rope.get("partial_rotary_factor", 1.0), "n_ctx": config.get("n_positions"), **config}
    kind = config["model_type"]
    if kind == "falcon" and not config["new_decoder_architecture"]:
        made["num_kv_heads"] = 1 if config["multi_query"] else config["num_attention_heads"]
    if kind.startswith("deepseek"):
        made["scoring_func"] = "sigmoid" if kind == "deepseek_v3" else "softmax"
    if kind == "granitemoehybrid":
        made["layer_types"] = [OLDER_TYPES[one] for one in config["layer_types"]]
        if not config["num_local_experts"]:
            made |= {"num_experts_per_tok": 0, "intermediate_size": config["shared_intermediate_size"]}
    if kind == "mpt":
        made["architectures"] = ["MPTForCausalLM"]
    if kind == "nemotron_h":
        types = made.pop("layers_block_type")
        made["hybrid_override_pattern"] = "".join(LETTERS[one] for one in types)
        made["num_hidden_layers"] = len(types)
        if "moe" not in types:
            del made["num_experts_per_tok"], made["n_routed_experts"], made["n_group"]
    if kind in ("qwen3_5_text", "qwen3_5_moe_text"):  # the converter's default assumes 32 pairs
        pairs = int(config["head_dim"] * rope["partial_rotary_factor"]) // 2
        made["rope_parameters"] = {**rope, "mrope_section": [(pairs + 2 - part) // 3 for part in range(3)]}
    trained = rope.get("original_max_position_embeddings", 0)
    if rope.get("rope_type") == "longrope" and config["max_position_embeddings"] <= trained:
        # llama.cpp uses the short factors if its context is at most the trained context; its least context is ROOM
        made["max_position_embeddings"] = made["original_max_position_embeddings"] = ROOM
        made["rope_parameters"] = {**rope, "original_max_position_embeddings": ROOM}
    return made


OLDER_TYPES = {"linear_attention": "mamba", "full_attention": "attention"}
LETTERS = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}


def pellucid_logits(path: Path, ids: list[int]) -> np.ndarray:
    """Logits (T, V) float32 of the tokens."""
    with opened(path) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), 16, "f32")
        runner = ModelRunner(checkpoint, model, plan, StepLimits(64, tokens=64, outputs=64), 1)
        try:
            return runner.forward([Chunk(BlockTable(), ids, outputs=len(ids))])
        finally:
            runner.close()


def distance(found: np.ndarray, wanted: np.ndarray, most: float, whose: str) -> tuple[bool, str]:
    """Compare logits. Returns (True if they are within ``most``, the largest difference relative to their range)."""
    far = float(np.abs(found - wanted).max() / np.ptp(wanted))
    return far <= most, f"{far:.1e} from {whose}{'' if far <= most else ', TOO FAR'}"


def compare(name: str, path: Path, architecture: str, reference: Reference | None) -> tuple[bool, str]:
    """Compare a converted model's logits. Returns (True if they pass, report). ``reference`` runs llama.cpp."""
    with np.load(GOLDENS / "tiny" / name / "expected.npz") as file:
        ids, golden = file["input_ids"].tolist(), file["logits"]
    stated = name not in INEXPRESSIBLE
    found = theirs = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = pellucid_logits(path, ids)
        good, text = distance(found, golden, MOST if stated else np.inf, "transformers")
        said = [text if stated else f"{text} (not stated in the file)"]
    except (PellucidError, UserWarning) as error:
        good, said = name in REFUSED and not stated, [f"Pellucid: {error}"]
    try:
        theirs = reference(path, ids) if reference else None
    except LlamaCppError as error:
        good &= name in REFUSED
        said.append(f"llama.cpp: {error}")
    if theirs is not None and found is not None:
        most = MOST_GELU if architecture in GELU else MOST_EIGHT_BIT if name in EIGHT_BIT else MOST
        near, text = distance(found, theirs, np.inf if name in OTHERWISE else most, "llama.cpp")
        good &= near
        said.append(f"{text}, which {OTHERWISE[name]}" if name in OTHERWISE else text)
    return good, ", ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--library", type=Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    sys.path[:0] = [str(given.llama_cpp), str(given.llama_cpp / "gguf-py")]
    os.environ["TQDM_DISABLE"] = "1"  # the converter's progress
    reference: Reference | None = None
    if given.library:
        bindings = given.llama_cpp.parents[1] / "llama_cpp"
        reference = partial(llama_logits, bindings=bindings, library=given.library)
    logging.disable()
    bad = 0
    with TemporaryDirectory() as scratch:
        for name in given.names or DECODERS:
            if name.startswith(WITHOUT_GGUF):
                continue
            target = Path(scratch) / f"{name}.gguf"
            try:
                architecture = convert(TINY[name], target)
            except Exception as error:  # the converter may raise anything
                print(f"{name}: not converted: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
                continue
            good, said = compare(name, target, architecture, reference)
            bad += not good
            print(f"{name} as {architecture}: {said}", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
