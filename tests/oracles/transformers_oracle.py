"""Golden continuations and next-token distributions of a GGUF model, computed by transformers in float32.

The weights of the file are dequantized to float32, so the result has no further rounding. The script first checks the
loaded model against the file: every tensor against `gguf.dequantize` (with llama's query and key rows reordered to
rotate-half order, and one subtracted from Gemma's norms), every hyperparameter in the metadata, and for gemma3 the
hyperparameters that the metadata leaves out.

    python tests/oracles/transformers_oracle.py --model SmolLM2-135M-Instruct.Q4_1.gguf \\
        --out tests/goldens/model/smollm2 --full smollm2-full.npz
    python tests/oracles/transformers_oracle.py --model gemma-3-270m-q4_k_m.gguf \\
        --out tests/goldens/model/gemma3 --full gemma3-full.npz

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU), tokenizers 0.23.3, gguf 0.19.0,
accelerate 1.15.0 on Python 3.11; each golden repeats its versions under "made_with".

OUT.json, from prompts.json: for each prompt its ids, the greedy continuation (40 tokens, or fewer that end with the
end-of-sequence token), and for every position i of ids + continuation the most likely token after it (`top[i]`), its
probability (`p[i]`) and its lead over the second probability (`lead[i]`).

OUT.npz, from text.txt in windows of 512 ids (BOS first if the model uses one). Positions count from the start of the
window. The distribution at a position is for the token after it. Positions 64…511 are scored:

    windows       int32   [W, 512]     the ids
    positions     int32   [448]        64…511, the same in every window
    top1_ids      int32   [W, 448]     most likely next token
    top1_p        float32 [W, 448]     its probability
    top1_lead     float32 [W, 448]     probability of the first minus probability of the second
    next_logprobs float32 [W, 447]     log-probability of the token that follows in the text, positions 64…510
    top_positions int32   [112]        each fourth position: 67, 71 … 511
    top_ids       int32   [W, 112, 64] the 64 most likely tokens, most likely first
    top_logprobs  float32 [W, 112, 64] natural logarithms of their probabilities
    rest_logprob  float32 [W, 112]     logarithm of all other tokens' mass

FULL (not committed; 0.5 GB for SmolLM2, 2.8 GB for Gemma), for the exact KL divergence: `windows` and
`positions` as above, and one float32 [448, vocabulary] array of natural log-probabilities per window,
`logprobs_00`, `logprobs_01`…, which `numpy.load` reads one at a time.
"""

import argparse
import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
WINDOW, FIRST, TOP, STRIDE, NEW_TOKENS = 512, 64, 64, 4, 40
PACKAGES = ("transformers", "torch", "tokenizers", "gguf", "accelerate", "numpy")

# Hyperparameters of Gemma-3-270M that its GGUF metadata leaves out.
GEMMA3_UNSTATED = {
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
}

# transformers' names of the file's per-block tensors.
BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
FAMILY_NAMES = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}


def hf_name(name: str, family: str) -> str:
    """The transformers name of a GGUF tensor."""
    fixed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in fixed:
        return fixed[name]
    _, block, part, _ = name.split(".")
    return f"model.layers.{block}.{(BLOCK_NAMES | FAMILY_NAMES[family])[part]}.weight"


def unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    """Reorder query or key rows from GGUF's order (adjacent pairs) to rotate-half order."""
    head = w.shape[0] // heads
    order = np.concatenate([h * head + np.r_[0:head:2, 1:head:2] for h in range(heads)])
    return w[order]


def check_weights(model: torch.nn.Module, reader: GGUFReader, family: str) -> int:
    """Compare every tensor of the file with the loaded model; returns the number of tensors."""
    c, state = model.config, model.state_dict()
    for t in reader.tensors:
        want = dequantize(t.data, t.tensor_type)
        if family == "llama" and ".attn_q." in t.name:
            want = unpermute(want, c.num_attention_heads)
        if family == "llama" and ".attn_k." in t.name:
            want = unpermute(want, c.num_key_value_heads)
        if family == "gemma3" and t.name.endswith("norm.weight"):
            want = want - 1  # transformers' Gemma norms multiply by 1 + w
        got = state[hf_name(t.name, family)].numpy()
        if got.dtype != np.float32 or not np.array_equal(got, want):
            raise SystemExit(f"{t.name}: the loaded weights are not the file's")
    if model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr():
        raise SystemExit("the output head is not the embedding")
    return len(reader.tensors)


def check_config(config, reader: GGUFReader, family: str) -> None:
    """Compare the configuration with the metadata and, for gemma3, with what the metadata leaves out."""
    stated = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": config.head_dim,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "rope.freq_base": config.rope_parameters.get("full_attention", config.rope_parameters)["rope_theta"],
        "rope.dimension_count": config.head_dim,
        "context_length": config.max_position_embeddings,
    }
    for key, value in stated.items():
        field = reader.get_field(f"{family}.{key}")
        if field is not None and field.contents() != value:
            raise SystemExit(f"{family}.{key} is {field.contents()}, the loaded configuration says {value}")
    for key, value in (GEMMA3_UNSTATED if family == "gemma3" else {}).items():
        if getattr(config, key) != value:
            raise SystemExit(f"configuration: {key} is {getattr(config, key)}, not {value}")


def load(path: Path):
    """The checked model, its tokenizer and the name of its architecture."""
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(**where)
    reader = GGUFReader(str(path))
    family = reader.get_field("general.architecture").contents()
    pre = reader.get_field("tokenizer.ggml.pre").contents()
    if pre == "smollm":  # splits off digits, then GPT-2 pieces; transformers drops the former for GGUF
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    check_config(model.config, reader, family)
    print(f"{check_weights(model, reader, family)} tensors equal the file's")
    return model, tokenizer, family


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of [positions, vocabulary] logits, in float64."""
    return torch.log_softmax(logits.double(), dim=-1)


@torch.inference_mode()
def greedy(model, ids: list[int], eos: set[int]) -> list[int]:
    """The most likely continuation of at most NEW_TOKENS tokens, one token at a time."""
    out, step, cache = [], torch.tensor([ids]), None
    while len(out) < NEW_TOKENS:
        r = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = r.past_key_values
        out.append(int(r.logits[0, -1].argmax()))
        if out[-1] in eos:
            break
        step = torch.tensor([[out[-1]]])
    return out


@torch.inference_mode()
def leaders(model, ids: list[int]) -> tuple[list[int], list[float], list[float]]:
    """Per position: the most likely next token, its probability, its lead over the second."""
    logits = model(torch.tensor([ids])).logits[0]
    tops = [log_softmax(part).topk(2) for part in logits.split(64)]
    p = torch.cat([t.values for t in tops]).exp()
    first = torch.cat([t.indices[:, 0] for t in tops]).tolist()
    lead = (p[:, 0] - p[:, 1]).tolist()
    return first, [round(x, 6) for x in p[:, 0].tolist()], [round(x, 6) for x in lead]


def prompts(tokenizer, text: str) -> list[dict]:
    """The prompts of prompts.json with their ids; chats only if the file has a template."""
    out = []
    for prompt in json.loads((HERE / "prompts.json").read_text(encoding="utf-8")):
        if "messages" in prompt:
            if not tokenizer.chat_template:
                continue
            words = tokenizer.apply_chat_template(prompt["messages"], tokenize=False, add_generation_prompt=True)
            ids = tokenizer(words, add_special_tokens=False)["input_ids"]
        else:
            words = prompt["text"] if "text" in prompt else text[slice(*prompt["slice"])]
            ids = tokenizer(words)["input_ids"]
        entry = {"name": prompt["name"], "text": words, "ids": ids}
        out.append(entry | ({"messages": prompt["messages"]} if "messages" in prompt else {}))
    return out


def windows(tokenizer, text: str, count: int) -> np.ndarray:
    """The first `count` windows of the text, each beginning with BOS if the tokenizer adds one."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = [i for i in tokenizer("a")["input_ids"][:1] if i == tokenizer.bos_token_id]
    body = WINDOW - len(bos)
    if len(ids) < count * body:
        raise SystemExit(f"the text has {len(ids)} tokens, {count * body} are needed")
    return np.array([bos + ids[w * body : (w + 1) * body] for w in range(count)], np.int32)


@torch.inference_mode()
def distributions(model, ids: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One window's part of the committed arrays, and its full log-probabilities."""
    logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0, FIRST:]
    full = np.empty(tuple(logits.shape), np.float32)
    top_ids, top_lp, rest = [], [], []
    for start in range(0, len(logits), 64):
        lp = log_softmax(logits[start : start + 64])
        full[start : start + 64] = lp.float().numpy()
        top = lp.topk(TOP)
        others = lp.scatter(1, top.indices, -torch.inf)
        top_ids.append(top.indices)
        top_lp.append(top.values)
        rest.append(torch.logsumexp(others, 1))
    top_ids, top_lp, rest = torch.cat(top_ids), torch.cat(top_lp), torch.cat(rest)
    p = top_lp[:, :2].exp()
    follows = ids[FIRST + 1 :]
    kept = slice(STRIDE - 1, None, STRIDE)
    return {
        "top1_ids": top_ids[:, 0].int().numpy(),
        "top1_p": p[:, 0].float().numpy(),
        "top1_lead": (p[:, 0] - p[:, 1]).float().numpy(),
        "next_logprobs": full[np.arange(len(follows)), follows],
        "top_ids": top_ids[kept].int().numpy(),
        "top_logprobs": top_lp[kept].float().numpy(),
        "rest_logprob": rest[kept].float().numpy(),
    }, full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file, alone or in its folder")
    parser.add_argument("--out", type=Path, required=True, help="golden, without the ending: .json and .npz")
    parser.add_argument("--full", type=Path, help="where to write all log-probabilities (.npz, large)")
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = (HERE / "text.txt").read_text(encoding="utf-8")
    model, tokenizer, family = load(args.model)

    done = []
    for prompt in prompts(tokenizer, text):
        continuation = greedy(model, prompt["ids"], {tokenizer.eos_token_id})
        top, p, lead = leaders(model, prompt["ids"] + continuation)
        shown = tokenizer.decode(continuation)
        print(f"{prompt['name']}: {len(prompt['ids'])} ids, {shown!r}")
        done.append(
            prompt | {"continuation": continuation, "continuation_text": shown, "top": top, "p": p, "lead": lead}
        )
    golden = {
        "made_with": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "model": {
            "file": args.model.name,
            "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
            "architecture": family,
        },
        "max_new_tokens": NEW_TOKENS,
        "prompts": done,
    }
    head = json.dumps({k: v for k, v in golden.items() if k != "prompts"}, ensure_ascii=False)
    lines = ",\n".join(json.dumps(prompt, ensure_ascii=False, separators=(",", ":")) for prompt in done)
    args.out.with_suffix(".json").write_text(f'{head[:-1]}, "prompts": [\n{lines}\n]}}\n', encoding="utf-8")

    ids = windows(tokenizer, text, args.windows)
    columns: dict[str, list[np.ndarray]] = {}
    full: dict[str, np.ndarray] = {}
    for w, row in enumerate(ids):
        parts, logprobs = distributions(model, row)
        for key, value in parts.items():
            columns.setdefault(key, []).append(value)
        if args.full:
            full[f"logprobs_{w:02d}"] = logprobs
        print(f"window {w}: perplexity {np.exp(-parts['next_logprobs'].mean(dtype=np.float64)):.4f}")
    positions = np.arange(FIRST, WINDOW, dtype=np.int32)
    shared = {"windows": ids, "positions": positions}
    kept = {"top_positions": positions[STRIDE - 1 :: STRIDE]}
    np.savez_compressed(args.out.with_suffix(".npz"), **shared, **kept, **{k: np.stack(v) for k, v in columns.items()})
    if args.full:
        np.savez(args.full, **shared, **full)


if __name__ == "__main__":
    main()
