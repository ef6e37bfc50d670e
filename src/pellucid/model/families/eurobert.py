"""EuroBERT (Boizard et al. 2025): the blocks of Llama with attention to both sides. Its classifier may pool scores."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.family import Family
from pellucid.model.gguf_encoder import gguf_outputs
from pellucid.model.output_heads import HeadLayer, Heads, OutputParts, TaskHead
from pellucid.model.outputs import PoolingKind
from pellucid.model.sentence_modules import read_outputs
from pellucid.model.spec import Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

BLOCKS = StandardDecoder("eurobert", norm=Norm("rms", 1e-5), aliases={"classifier_pooling": "clf_pooling"})


def _heads(config: Config, bias: bool) -> Heads:
    """The heads. ``bias``: the projection to the vocabulary has a bias if the feed-forwards have biases."""
    pools: dict[str, PoolingKind] = {"bos": "cls", "mean": "mean", "late": "mean"}
    pooling, late = config.choice("classifier_pooling", pools, "late"), True
    late = config.text("classifier_pooling", "late") == "late"
    labels = HeadLayer("classifier", "labels")
    return {
        "classify": TaskHead((HeadLayer("dense", activation="gelu"), labels), pooling, late),
        "tag": TaskHead((labels,)),
        "fill": TaskHead(decoder="lm_head", bias="lm_head.bias" if bias else ""),
    }


def _with_outputs(model: Model, outputs: OutputParts) -> Model:
    body = {name: slot for name, slot in model.slots.items() if not name.startswith("project.")}
    spec = outputs.of(model.spec.with_attention(causal=False))
    return replace(model, spec=spec, slots={**body, **outputs.slots})


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of EuroBertModel."""
    config.refuse("is_decoder", False)
    model = BLOCKS.from_config(checkpoint, config)
    own = config.with_aliases(BLOCKS.aliases)
    heads = _heads(own, config.flag("mlp_bias", False))
    width, norm = model.spec.embedding.width, model.spec.blocks[0].norm
    return _with_outputs(model, read_outputs(checkpoint, own, heads, width, norm, "silu"))


def from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read the GGUF architecture eurobert."""
    own = config.with_prefix("eurobert.")
    own.refuse("attention.causal", False)
    model = BLOCKS.from_gguf(checkpoint, config)
    return _with_outputs(model, gguf_outputs(checkpoint, own))


EUROBERT = Family(
    "eurobert",
    gguf={"eurobert": from_gguf},
    safetensors={"eurobert": from_config},
    unused=(r"model\.rotary_emb\.inv_freq",),  # follows from the base
    skipped=(r"(lm_head|dense|classifier)\..+",),  # heads of tasks that were not asked for
    gguf_usual={"attention.causal": False, "pooling_type": 1},
)
