"""Tiny encoder-decoders with random weights, two per family, with the outputs of transformers.

    python tests/oracles/sources_oracle.py --out tests/goldens/model/sources [NAME...]

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU) on Python 3.11, in float32 with eager
attention. OUT/<name>/ has config.json and generation_config.json as transformers saves them, and tensors.json, from
which tests draw the weights (tests/support/drawn.py). expected.npz has:

    source_ids   int32   [40]        the source
    decoder_ids  int32   [24]        tokens of the decoder, from its first token on
    hidden       float32 [40, D]     the encoder's last hidden states
    logits       float32 [24, 128]   logits of the decoder
    pattern      float16 [H, 24, 40] attention weights of the first cross attention

The "-odd" models have three heads, other widths, and other numbers of layers in the encoder and the decoder.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn import draw

LENGTH, DECODER_LENGTH, VOCABULARY = 40, 24, 128
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
T5_ODD = T5 | {"d_model": 96, "d_kv": 24, "d_ff": 80, "num_layers": 3, "num_decoder_layers": 1, "num_heads": 3}
BART = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 2,
}
BART_ODD = BART | {
    "d_model": 96,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 112,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 6,
}
MARIAN = {"pad_token_id": 127, "decoder_start_token_id": 127, "eos_token_id": 0, "forced_eos_token_id": 0}
SCALED = {"scale_embedding": True}
GEMMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "query_pre_attn_scalar": 24,
    "sliding_window": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA_ODD = GEMMA | {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 40,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": None,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", T5),
    "t5-odd": ("T5", T5_ODD | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5", T5 | {"tie_word_embeddings": False}),
    "umt5": ("UMT5", T5),
    "umt5-odd": ("UMT5", T5_ODD | {"feed_forward_proj": "gated-silu"}),
    "bart": ("Bart", BART),
    "bart-odd": ("Bart", BART_ODD | SCALED | {"activation_function": "relu"}),
    "mbart": ("MBart", BART),
    "mbart-odd": ("MBart", BART_ODD | SCALED),
    "marian": ("Marian", BART | MARIAN | SCALED | {"activation_function": "swish"}),
    "marian-odd": ("Marian", BART_ODD | MARIAN),
    "pegasus": ("Pegasus", BART | SCALED),
    "pegasus-odd": ("Pegasus", BART_ODD),
    "m2m_100": ("M2M100", BART),
    "m2m_100-odd": ("M2M100", BART_ODD | {"scale_embedding": False}),
    "blenderbot": ("Blenderbot", BART | SCALED),
    "blenderbot-odd": ("Blenderbot", BART_ODD),
    "blenderbot_small": ("BlenderbotSmall", BART),
    "blenderbot_small-odd": ("BlenderbotSmall", BART_ODD | SCALED),
    "t5gemma": ("T5Gemma", {"vocab_size": VOCABULARY, "encoder": GEMMA, "decoder": GEMMA | {"sliding_window": 8}}),
    "t5gemma-odd": ("T5Gemma", {"vocab_size": VOCABULARY, "encoder": GEMMA_ODD, "decoder": GEMMA}),
    "t5gemma-window": (
        "T5Gemma",
        {"vocab_size": VOCABULARY, "encoder": GEMMA | {"sliding_window": 6}, "decoder": GEMMA},
    ),
}


def redraw(folder: Path, name: str) -> None:
    """Replace the weights of a saved model by drawn weights, and write tensors.json so that tests can draw them."""
    path = folder / "model.safetensors"
    tensors = {key: list(x.shape) for key, x in load_file(path).items()}
    offset = 0.0 if name.startswith("t5gemma") else 1.0  # Gemma's norms multiply by 1 + w
    save_file(draw(tensors, name, offset), path, metadata={"format": "pt"})
    recipe = {"seed": name, "offset": offset, "tensors": tensors}
    (folder / "tensors.json").write_text(json.dumps(recipe, indent=0) + "\n")


def saved(folder: Path, name: str, classes: str, options: dict[str, Any]) -> Any:
    """Write a model to the folder, and load it from the folder in float32."""
    kind = getattr(transformers, "MarianMTModel" if classes == "Marian" else f"{classes}ForConditionalGeneration")
    config = getattr(transformers, f"{classes}Config")(**options)
    kind(config).save_pretrained(folder)
    redraw(folder, name)
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="only these models")
    args = parser.parse_args()
    made_with = {name: version(name) for name in ("transformers", "torch", "safetensors", "numpy")}
    for number, (name, (classes, options)) in enumerate(MODELS.items()):
        if args.names and name not in args.names:
            continue
        folder = args.out / name
        model = saved(folder, name, classes, options)
        rng = np.random.default_rng([21, number])
        source = rng.integers(3, VOCABULARY - 1, LENGTH).astype(np.int32)
        target = rng.integers(3, VOCABULARY - 1, DECODER_LENGTH).astype(np.int32)
        target[0] = options.get("decoder_start_token_id", 2)  # 2: T5Gemma's bos_token_id
        out = model(
            input_ids=torch.from_numpy(source[None].astype(np.int64)),
            decoder_input_ids=torch.from_numpy(target[None].astype(np.int64)),
            output_attentions=True,
        )
        hidden, logits = out.encoder_last_hidden_state[0].numpy(), out.logits[0].numpy()
        pattern = out.cross_attentions[0][0].numpy().astype(np.float16)
        np.savez_compressed(
            folder / "expected.npz",
            source_ids=source, decoder_ids=target, hidden=hidden, logits=logits, pattern=pattern,
            made_with=np.array(json.dumps(made_with)),
        )  # fmt: skip
        (folder / "model.safetensors").unlink()  # replaced by tensors.json
        print(f"{name}: standard deviation of hidden {hidden.std():.3f}, logits {logits.std():.3f}")


if __name__ == "__main__":
    main()
