"""draft"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import transformers
from interp_engine import Address, capture, load_model
from interp_engine.points import Scope
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.tiny import DECODERS, TINY, model_runner, opened

from pellucid import pipeline
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.plan.weights import layouts
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.trace.trace import Trace

IDS = [3, 17, 5, 40, 2, 77, 9, 31, 8, 60, 4, 11]
B = "blocks.N."
BEFORE = ("blocks.N-1.residual", "embed.norm", "position", "embed.widen", "embed")
T = {
    "embeddings": ("embed",),
    "resid_pre": BEFORE,
    "attn_in": (B + "attention.norm", B + "recurrent.norm", *BEFORE),
    "q_norm_in": (B + "attention.q",),
    "q_norm_out": (B + "attention.q_norm",),
    "k_norm_in": (B + "attention.k",),
    "k_norm_out": (B + "attention.k_norm",),
    "value": (B + "attention.v_norm", B + "attention.v"),
    "attn_scores": (B + "attention.scores",),
    "attn_probs": (B + "attention.pattern",),
    "z": (B + "attention.gated", B + "attention.heads", B + "recurrent.output_norm", B + "recurrent.gated"),
    "attn_gate": (B + "attention.gate",),
    "attn_out": (B + "attention.output", B + "recurrent.output"),
    "attn_out_post": (B + "attention.post_norm", B + "attention.output", B + "recurrent.output"),
    "resid_mid": (B + "attention.residual", B + "recurrent.residual"),
    "mlp_in": (B + "feedforward.norm", B + "attention.norm", B + "attention.residual"),
    "mlp_pre": (B + "feedforward.gate", B + "feedforward.up"),
    "mlp_pre_linear": (B + "feedforward.up",),
    "mlp_act": (B + "feedforward.hidden",),
    "router_logits": (B + "feedforward.router",),
    "expert_weights": (B + "feedforward.expert_weights",),
    "expert_indices": (B + "feedforward.experts",),
    "mlp_out": (B + "feedforward.output",),
    "mlp_out_post": (B + "feedforward.post_norm", B + "feedforward.output"),
    "resid_post": (B + "residual",),
    "final_norm": ("norm",),
    "lm_head": ("project.logits",),
}
TOK = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")))


def own_values(path):
    with opened(path) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), MAX_ACTIVATION_BITS, "f32")
    with model_runner(path, plan) as runner:
        trace = Trace(runner.plan.points, ["**"])
        watching = trace.watching()
        (probe,) = watching.begin(IDS)
        watching.keep(probe)
        probe.tokens = lambda: IDS
        runner.forward([Chunk(BlockTable(), IDS, len(IDS), probe=probe)])
        return {point: trace[point] for point in trace}, runner.plan.points


torch.set_num_threads(1)
warnings.simplefilter("ignore")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
worst = 0
for n in sys.argv[1:] or DECODERS:
    try:
        m = load_model(str(TINY[n]), backend="eager", device="cpu", dtype="float32", tokenizer=TOK)
    except Exception as e:
        print(n, "| LOAD", type(e).__name__, str(e)[:150].replace("\n", " "))
        continue
    own, points = own_values(TINY[n])
    out = defaultdict(list)
    for p in m.points():
        for l in [None] if p.scope is Scope.GLOBAL else range(m.n_layers):
            a = Address(p.name, l)
            try: r = m.refuses(a)
            except Exception as e: r = "CRASH " + str(e)[:80]; out[p.name, r].append(l); continue
            if r:
                out[p.name, "refused: " + r[:100]].append(l)
                continue
            try:
                t = capture(m, IDS, [a])[a].float().numpy()
            except Exception as e:
                out[p.name, "REFUSED: " + str(e)[:100]].append(l)
                continue
            names = [x.replace(".N-1.", f".{(l or 0) - 1}.").replace(".N.", f".{l}.") for x in T[p.name]]
            q = next((x for x in names if x in own), None)
            if q is None:
                out[p.name, "none"].append(l)
                continue
            v = own[q]
            if v.size != t.size:
                out[p.name, f"SHAPE {v.shape} {t.shape} {q.split('.', 2)[-1]}"].append(l)
                continue
            v = v.reshape(t.shape)
            ok = np.isfinite(t) & (t > -1e30)
            e = np.abs(v[ok] - t[ok]).max() / max(np.ptp(t[ok]), 1e-9)
            if e < 1e-4:
                worst = max(worst, e)
                out["ok", ""].append(l)
            else:
                out[p.name, f"APART {q.split('.', 2)[-1]} scaled={points[q].scaled}"].append((l, f"{e:.1g}"))
    for k, v in out.items():
        if k[1].startswith("refused"):
            continue
        print(n, "|", *k, v if k[0] != "ok" else len(v))
print(worst)
