"""Golden decisions of random models that score each option at a mark, by an independent implementation in float64.

    python tests/oracles/marked_options_oracle.py --out tests/goldens/decide/marked_options.json

This file implements the definition of llama.cpp's decision type "laya" in PyTorch: the encoder ModernBERT (Warner et
al. 2024, https://arxiv.org/abs/2412.13663), the head of src/models/modern-bert.cpp, which is ``nn.TransformerEncoder``
with norms before each part, and the prompts of tools/server/server-decision.cpp. The models are in
``tests/support/marked_options.py``. Prompts are rendered by Jinja itself. The scores of one model are compared with
transformers' ``ModernBertModel`` and ``torch.nn.TransformerEncoder``.

The committed golden was made with transformers 5.24.0, torch 2.13.0 (CPU), Jinja2 3.1.6 on Python 3.11. OUT: see
``golden`` in the module of the models.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from decisions_oracle import answer_of
from jinja2 import Environment
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention, silu
from transformers import ModernBertConfig, ModernBertModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.decisions import STATES
from support.marked_options import ASKED, COMMON, MASK, MODELS, NAMES, SEP, TEMPLATE, weights

KINDS = ("choice", "score", "noul")


class Laya:
    def __init__(self, name):
        self.config, self.eps = MODELS[name], COMMON["attention.layer_norm_epsilon"]
        self.w = {key: torch.from_numpy(x).double() for key, x in weights(name).items()}
        self.width, self.heads = self.config["embedding_length"], self.config["attention.head_count"]
        self.encoder = self.config["block_count"] - self.config["decision.block_count"]
        pattern = self.config.get("attention.sliding_window_pattern")
        self.local = [bool(pattern[at]) if pattern is not None else at % 3 != 0 for at in range(self.encoder)]

    def norm(self, x, name):
        weight, bias = self.w[f"{name}.weight"], self.w.get(f"{name}.bias")
        return layer_norm(x, (self.width,), weight, bias, self.eps)

    def dense(self, x, name):
        return linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def attend(self, x, block, base=None, reach=None):
        tokens, head_dim = len(x), self.width // self.heads
        q, k, v = self.dense(x, f"{block}.attn_qkv").reshape(tokens, 3, self.heads, head_dim).permute(1, 2, 0, 3)
        if base is not None:
            angles = torch.arange(tokens)[:, None] * base ** (-torch.arange(0, head_dim, 2).double() / head_dim)
            cos, sin = (f(angles).repeat(1, 2) for f in (torch.cos, torch.sin))

            def turned(x):
                half = head_dim // 2
                return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

            q, k = turned(q), turned(k)
        at = torch.arange(tokens)
        near = None if reach is None else (at[:, None] - at).abs() <= reach
        mixed = scaled_dot_product_attention(q, k, v, near)
        return self.dense(mixed.transpose(0, 1).reshape(tokens, -1), f"{block}.attn_output")

    def scores(self, ids, kind):
        """The score of each token for a type of question."""
        x = self.norm(self.w["token_embd.weight"][ids], "token_embd_norm")
        act = silu if self.config.get("hidden_activation") == "silu" else gelu
        base = COMMON["rope.freq_base"]
        for layer in range(self.encoder):
            block = f"blk.{layer}"
            here = self.norm(x, f"{block}.attn_norm") if layer else x
            if self.local[layer]:
                own = self.config.get("rope.freq_base_swa", base)
                x = x + self.attend(here, block, own, self.config["attention.sliding_window"] // 2)
            else:
                x = x + self.attend(here, block, base)
            gate, up = self.dense(self.norm(x, f"{block}.ffn_norm"), f"{block}.ffn_up").chunk(2, -1)
            x = x + self.dense(act(gate) * up, f"{block}.ffn_down")
        x = self.norm(x, "output_norm") + self.w["token_types.weight"][KINDS.index(kind)]
        for layer in range(self.encoder, self.config["block_count"]):
            block = f"blk.{layer}"
            x = x + self.attend(self.norm(x, f"{block}.attn_norm"), block)
            x = x + self.dense(
                self.dense(self.norm(x, f"{block}.ffn_norm"), f"{block}.ffn_up").relu(), f"{block}.ffn_down"
            )
        return self.dense(gelu(self.dense(self.norm(x, "cls.norm"), "cls")), "cls.output")[:, 0]


def scores_by_transformers(model, ids, kind):
    """The score of each token, by the modules that the published models are made of."""
    config, w, width = model.config, model.w, model.width
    inner, head_inner = (int(config["feed_forward_length"][at]) for at in (0, -1))
    settings = ModernBertConfig(
        vocab_size=len(w["token_embd.weight"]),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=model.encoder,
        num_attention_heads=model.heads,
        local_attention=config["attention.sliding_window"],
        global_rope_theta=COMMON["rope.freq_base"],
        local_rope_theta=config["rope.freq_base_swa"],
        pad_token_id=0,
    )
    encoder = ModernBertModel(settings).double().eval()
    names = {"attn.Wqkv": "attn_qkv", "attn.Wo": "attn_output", "mlp.Wi": "ffn_up", "mlp.Wo": "ffn_down"}
    names |= {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm"}
    own = {"embeddings.tok_embeddings": "token_embd", "embeddings.norm": "token_embd_norm", "final_norm": "output_norm"}
    for layer in range(model.encoder):
        own |= {f"layers.{layer}.{name}": f"blk.{layer}.{ours}" for name, ours in names.items()}
    own.pop("layers.0.attn_norm")
    encoder.load_state_dict({f"{name}.weight": w[f"{ours}.weight"] for name, ours in own.items()})

    kinds = {"self_attn.in_proj_": "attn_qkv.", "self_attn.out_proj.": "attn_output.", "linear1.": "ffn_up."}
    kinds |= {"linear2.": "ffn_down.", "norm1.": "attn_norm.", "norm2.": "ffn_norm."}
    block = torch.nn.TransformerEncoderLayer(width, model.heads, head_inner, batch_first=True, norm_first=True)
    blocks = torch.nn.TransformerEncoder(block, config["decision.block_count"], enable_nested_tensor=False)
    blocks.double().eval().load_state_dict(
        {
            f"layers.{at}.{name}{part}": w[f"blk.{model.encoder + at}.{ours}{part}"]
            for at in range(config["decision.block_count"])
            for name, ours in kinds.items()
            for part in ("weight", "bias")
        }
    )
    with torch.no_grad():
        x = encoder(torch.tensor([ids])).last_hidden_state + w["token_types.weight"][KINDS.index(kind)]
        x = model.norm(blocks(x)[0], "cls.norm")
        return model.dense(gelu(model.dense(x, "cls")), "cls.output")[:, 0]


def options_of(question):
    criteria = question.get("criteria")
    if question["type"] == "choice":
        return list(criteria.items())
    if question["type"] == "score":
        return [(str(at), one) for at, one in enumerate(criteria)]
    return [(key, (criteria or {}).get(key)) for key in ("false", "true")]


def without_mask(value):
    if isinstance(value, str):
        return value.replace("[MASK]", " ")
    if isinstance(value, list):
        return [without_mask(one) for one in value]
    return {key: without_mask(one) for key, one in value.items()} if isinstance(value, dict) else value


def encoded(text):
    """Tokens: the three special tokens, and bytes."""
    special = {name: token for token, name in NAMES.items()}
    parts = re.split(r"(\[CLS\]|\[SEP\]|\[MASK\])", text)
    return [token for part in parts for token in ([special[part]] if part in special else part.encode())]


def prompt(state, question, limit):
    """The tokens and the positions of the marks: each text is cut, then all are joined."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    listed = [{"key": key, "description": about} for key, about in options_of(question)]
    values = {"type": question["type"], "instructions": question["instructions"], "options": listed, "state": state}
    whole = encoded(environment.from_string(TEMPLATE).render(**without_mask(values)))
    asked, after = whole[1 : whole.index(SEP)], whole[whole.index(SEP) + 1 :]
    middle, state_ids = after[: after.index(SEP)], after[after.index(SEP) + 1 : -1]
    assert after[-1] == SEP
    starts = [at for at, token in enumerate(middle) if token == MASK]
    options = [middle[a:b] for a, b in zip(starts, [*starts[1:], len(middle)])]
    options = [one[:49] for one in options]
    if sum(len(one) for one in options) > limit - 16:
        options = [one[: max(4, (limit - 16) // len(options))] for one in options]
    asked = asked[: max(8, limit - sum(len(one) for one in options))]
    head, marks = [whole[0], *asked, SEP], []
    for one in options:
        marks.append(len(head))
        head += one
    return [*head, SEP, *state_ids, SEP], marks


def temperature(config, question):
    count = len(options_of(question))
    band = "2" if count <= 2 else "3_5" if count <= 5 else "6_10" if count <= 10 else "11"
    names = (f"decision.temperature.{question['type']}.{band}", f"decision.temperature.{question['type']}")
    return next((config[name] for name in names if name in config), 1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out, found = parser.parse_args().out, {}
    for name, config in MODELS.items():
        model, found[name] = Laya(name), []
        for state in STATES:
            cases = {}
            for id, question in ASKED.items():
                ids, marks = prompt(state, question, config["decision.max_head_tokens"])
                every = model.scores(torch.tensor(ids), question["type"])
                if name == "laya":  # transformers computes the angles of positions in float32
                    torch.testing.assert_close(
                        scores_by_transformers(model, ids, question["type"]), every, atol=2e-5, rtol=0
                    )
                scores = every[marks].tolist()
                answer = answer_of(question, options_of(question), [scores], temperature(config, question))
                cases[id] = {"ids": ids, "marks": marks, "scores": scores, "answer": answer}
            found[name].append(cases)
    out.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
