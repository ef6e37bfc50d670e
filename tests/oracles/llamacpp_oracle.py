"""Divergence of llama.cpp from the float32 run of the same GGUF file, on the same windows and prompts.

Reads the files that transformers_oracle.py wrote and runs the same ids through llama.cpp on the CPU, with two threads,
an f16 cache unless the variant has another, and several settings of flash attention and micro-batch. The comparison
covers the whole vocabulary in float64: KL(float32 ‖ llama.cpp) in nats per position, the share of positions with the
same most likely token, and that share where the float32 run's lead is 0.05 or more.

    python tests/oracles/llamacpp_oracle.py --model SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2 \\
        --golden tests/goldens/model/smollm2.json --full smollm2-full.npz \\
        --out tests/goldens/model/llamacpp.json

(and the same for gemma3: an existing OUT keeps the other models' entries). Needs the package llama_cpp;
LLAMA_CPP_LIB_PATH names the folder of the llama.cpp libraries. The committed numbers were made with
llama_cpp_python 0.3.36 on llama.cpp 0.5.0-dev, commit 0c1e570, a native Release build; the golden repeats the
versions and the processor's features.

OUT.json has for each model, under its name: `model` (file, SHA-256), `made_with`, `positions` (number of scored
positions), `prompts` (agreement on the prompts' positions, number of equal greedy continuations, and each
continuation), `best` (the variant with the lowest mean KL) and `variants`, each with

    settings            flash_attn, n_ubatch, kv
    kl_mean             over all scored positions
    kl_se               its standard error as if positions were independent
    kl_se_windows       its standard error from the windows' means, which allows for dependent positions
    kl_windows          mean of each window
    kl_first, kl_second mean over positions 64…255 and 256…511 of the windows
    kl_median, kl_p99, kl_max
    kl_top64            mean KL computed from the committed distributions alone: 64 tokens and the sum of all others,
                        over their positions (never above the KL over the vocabulary at the same positions)
    kl_top64_positions  mean KL over the vocabulary at the same positions
    top1, top1_lead     agreement over all positions, and where the lead is 0.05 or more
    lead_positions      number of positions with a lead of 0.05 or more
    perplexity, perplexity_float32
    versus_default      mean difference of KL from the default variant at the same positions, its standard errors
"""

import argparse
import ctypes
import hashlib
import json
import math
from pathlib import Path

import llama_cpp as lc
import numpy as np

LEAD = 0.05
FLASH = {"auto": -1, "off": 0, "on": 1}
KV = {"f32": lc.GGML_TYPE_F32, "f16": lc.GGML_TYPE_F16}
DEFAULT = {"flash_attn": "auto", "n_ubatch": 512, "kv": "f16"}
VARIANTS = {
    "default": {},
    "flash-on": {"flash_attn": "on"},
    "flash-off": {"flash_attn": "off"},
    "flash-off-kv-f32": {"flash_attn": "off", "kv": "f32"},
    "ubatch-1": {"n_ubatch": 1},
    "ubatch-1-flash-off": {"n_ubatch": 1, "flash_attn": "off"},
}


class Run:
    """One llama.cpp context over a loaded model."""

    def __init__(self, model, n_ctx: int, threads: int, flash_attn: str, n_ubatch: int, kv: str) -> None:
        p = lc.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch = n_ctx, n_ctx, n_ubatch
        p.n_threads = p.n_threads_batch = threads
        p.flash_attn_type = FLASH[flash_attn]
        p.type_k = p.type_v = KV[kv]
        self.ctx = lc.llama_init_from_model(model, p)
        if not self.ctx:
            raise SystemExit("llama.cpp made no context")
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
        self.batch = lc.llama_batch_init(n_ctx, 0, 1)
        self.used = 0

    def clear(self) -> None:
        lc.llama_memory_clear(lc.llama_get_memory(self.ctx), True)
        self.used = 0

    def feed(self, ids: list[int], first: int = 0) -> np.ndarray:
        """Append ids to the sequence and run them.

        Returns float32 [len(ids) − first, vocabulary] logits, a view that is valid until the next call.
        """
        b = self.batch
        b.n_tokens = len(ids)
        for i, token in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, self.used + i, 1, i >= first
            b.seq_id[i][0] = 0
        if lc.llama_decode(self.ctx, b) != 0:
            raise SystemExit("llama_decode failed")
        self.used += len(ids)
        pointer = lc.llama_get_logits(self.ctx)
        return np.ctypeslib.as_array(pointer, shape=((len(ids) - first), self.vocab))

    def close(self) -> None:
        lc.llama_batch_free(self.batch)
        lc.llama_free(self.ctx)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def score_window(run: Run, golden: dict, full: np.lib.npyio.NpzFile, w: int) -> dict[str, np.ndarray]:
    """Score window w.

    Returns per scored position: KL, KL of the top-64 summary (NaN where not stored), llama.cpp's most likely token, and
    the log-probability of the following token under both.
    """
    ids, first = full["windows"][w], int(full["positions"][0])
    run.clear()
    logits = run.feed(ids.tolist(), first)
    reference = full[f"logprobs_{w:02d}"]
    n = len(reference)
    kl, top, kl64 = np.empty(n), np.empty(n, np.int64), np.full(n, np.nan)
    follows, mine, theirs = ids[first + 1 :], np.empty(n - 1), np.empty(n - 1)
    kept = {int(p): i for i, p in enumerate(golden["top_positions"])}
    for start in range(0, n, 16):
        p, q = reference[start : start + 16].astype(np.float64), log_softmax(logits[start : start + 16])
        kl[start : start + 16] = (np.exp(p) * (p - q)).sum(axis=1)
        top[start : start + 16] = q.argmax(axis=1)
        for r in range(start, min(start + 16, n)):
            if r < n - 1:
                mine[r], theirs[r] = q[r - start, follows[r]], p[r - start, follows[r]]
            if (i := kept.get(first + r)) is not None:
                a = golden["top_logprobs"][w, i].astype(np.float64)
                b = q[r - start, golden["top_ids"][w, i]]
                rest = float(golden["rest_logprob"][w, i])
                others = math.log(max(1 - np.exp(b).sum(), 1e-30))
                kl64[r] = (np.exp(a) * (a - b)).sum() + math.exp(rest) * (rest - others)
    return {"kl": kl, "kl64": kl64, "top": top, "next": mine, "next_reference": theirs}


def summary(parts: list[dict[str, np.ndarray]], golden: dict, default: np.ndarray | None) -> dict:
    """The numbers of one variant, computed from its windows."""
    kl = np.stack([p["kl"] for p in parts])
    kl64 = np.stack([p["kl64"] for p in parts])
    same = np.stack([p["top"] for p in parts]) == golden["top1_ids"]
    ahead = golden["top1_lead"] >= LEAD
    half = golden["positions"] < 256
    means, kept = kl.mean(axis=1), ~np.isnan(kl64)
    out = {
        "kl_mean": kl.mean(),
        "kl_se": kl.std(ddof=1) / math.sqrt(kl.size),
        "kl_se_windows": means.std(ddof=1) / math.sqrt(len(means)),
        "kl_windows": means.tolist(),
        "kl_first": kl[:, half].mean(),
        "kl_second": kl[:, ~half].mean(),
        "kl_median": float(np.median(kl)),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "kl_max": kl.max(),
        "kl_top64": kl64[kept].mean(),
        "kl_top64_positions": kl[kept].mean(),
        "top1": same.mean(),
        "top1_lead": same[ahead].mean(),
        "lead_positions": int(ahead.sum()),
        "perplexity": math.exp(-np.concatenate([p["next"] for p in parts]).mean()),
        "perplexity_float32": math.exp(-np.concatenate([p["next_reference"] for p in parts]).mean()),
    }
    if default is not None:
        d = kl - default
        out["versus_default"] = {
            "kl_mean": d.mean(),
            "se": d.std(ddof=1) / math.sqrt(d.size),
            "se_windows": d.mean(axis=1).std(ddof=1) / math.sqrt(len(d)),
        }
    return rounded(out)


def rounded(value):
    """Round floats to six significant digits, recursively in dictionaries and lists."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run_prompts(run: Run, prompts: list[dict], limit: int, eos: int) -> dict:
    """Agreement with the float32 run on the prompts' positions, and llama.cpp's own greedy continuations."""
    total = equal = ahead = ahead_equal = same = 0
    continuations = {}
    for prompt in prompts:
        ids = prompt["ids"] + prompt["continuation"]
        run.clear()
        agree = run.feed(ids).argmax(axis=1) == np.array(prompt["top"])
        sure = np.array(prompt["lead"]) >= LEAD
        total, equal = total + len(ids), equal + int(agree.sum())
        ahead, ahead_equal = ahead + int(sure.sum()), ahead_equal + int(agree[sure].sum())
        run.clear()
        out = [int(run.feed(prompt["ids"])[-1].argmax())]
        while len(out) < limit and out[-1] != eos:
            out.append(int(run.feed(out[-1:])[0].argmax()))
        continuations[prompt["name"]] = out
        same += out == prompt["continuation"]
    return {
        "positions": total,
        "top1": round(equal / total, 6),
        "lead_positions": ahead,
        "top1_lead": round(ahead_equal / ahead, 6),
        "continuations_same": same,
        "continuations_total": len(prompts),
        "continuations": continuations,
    }


def commit() -> str:
    """The commit of the loaded libraries."""
    f = lc.llama_cpp._lib.ggml_commit
    f.restype = ctypes.c_char_p
    return f().decode()


@lc.llama_log_callback
def silent(level: int, text: bytes, user_data: object) -> None:
    """Drop llama.cpp's log."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--name", required=True, help="the entry's name in OUT")
    parser.add_argument(
        "--golden", type=Path, required=True, help="the .json of transformers_oracle.py; the .npz beside it"
    )
    parser.add_argument("--full", type=Path, required=True, help="its --full")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args()

    written = json.loads(args.golden.read_text(encoding="utf-8"))
    sha256 = hashlib.sha256(args.model.read_bytes()).hexdigest()
    if sha256 != written["model"]["sha256"]:
        raise SystemExit("the golden is of another file")
    golden = dict(np.load(args.golden.with_suffix(".npz")))
    full = np.load(args.full)
    if not np.array_equal(full["windows"], golden["windows"]):
        raise SystemExit("the full log-probabilities are of other windows")

    lc.llama_log_set(silent, None)
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(str(args.model).encode(), lc.llama_model_default_params())
    if not model:
        raise SystemExit("llama.cpp did not load the model")
    eos = lc.llama_vocab_eos(lc.llama_model_get_vocab(model))
    longest = max(len(p["ids"]) + written["max_new_tokens"] for p in written["prompts"])
    n_ctx = -(-max(longest, golden["windows"].shape[1]) // 256) * 256

    made_with = {
        "llama_cpp_python": lc.__version__,
        "llama.cpp": lc.llama_version().decode(),
        "commit": commit(),
        "features": lc.llama_print_system_info().decode().strip(),
        "n_threads": args.threads,
    }
    print(json.dumps(made_with), flush=True)

    default, variants, on_prompts = None, {}, None
    for name in args.variants:
        settings = DEFAULT | VARIANTS[name]
        run = Run(model, n_ctx, args.threads, **settings)
        parts = [score_window(run, golden, full, w) for w in range(len(golden["windows"]))]
        variants[name] = {"settings": settings} | summary(parts, golden, default)
        if name == "default":
            default = np.stack([p["kl"] for p in parts])
            on_prompts = run_prompts(run, written["prompts"], written["max_new_tokens"], eos)
        run.close()
        v = variants[name]
        print(
            f"{name}: KL {v['kl_mean']:.3e} ± {v['kl_se_windows']:.1e}, top-1 {v['top1']:.4f}, "
            f"where sure {v['top1_lead']:.4f} of {v['lead_positions']}",
            flush=True,
        )
    entry = {
        "model": written["model"],
        "made_with": made_with,
        "positions": int(golden["top1_ids"].size),
        "best": min(variants, key=lambda k: variants[k]["kl_mean"]),
        "variants": variants,
        "prompts": on_prompts,
    }
    known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    known[args.name] = entry
    args.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
