"""BERT, RoBERTa and the encoders with their structure: ERNIE, Megatron-BERT, RoFormer, ELECTRA, DistilBERT, ALBERT."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.families import jina
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, choice_head, encoder_heads, fill_head
from pellucid.model.outputs import Labels
from pellucid.model.positions import RelativeBuckets, Rotary
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_encoder import StandardEncoder, after_padding, bert_names
from pellucid.model.tensor_names import GGUF, TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

# BERT (Devlin et al. 2019), also as a sentence encoder (Reimers and Gurevych 2019) and a cross-encoder.
#
# BERT has post-norms, bidirectional attention, learned positions and type embeddings. GGUF files of the architecture
# "bert" also hold models of RoBERTa, XLM-R and DistilBERT.


def heads(base: str) -> Heads:
    """The heads, for a model whose tensors have names with the first part ``base``."""
    pooler, labels = HeadLayer(f"{base}.pooler.dense", activation="tanh"), HeadLayer("classifier", "labels")
    at, following = "cls.predictions", (pooler, HeadLayer("cls.seq_relationship", "labels"))
    return encoder_heads(
        TaskHead((pooler, labels), "cls"),
        fill_head(f"{at}.transform.dense", f"{at}.transform.LayerNorm", f"{at}.decoder", f"{at}.bias"),
        NextSentencePrediction=TaskHead(following, "cls", labels=Labels(("next", "random")), task="classify"),
        MultipleChoice=choice_head(pooler, labels),
    )


HEADS = heads("bert")
STANDARD = StandardEncoder(
    "bert",
    names=bert_names("bert"),
    heads=HEADS,
    gguf_names=GGUF
    | {
        "model.embed.types": "token_types",
        "attention.norm": "attn_output_norm",
        "feedforward.norm": "layer_output_norm",
    },
    # in models of BertForPreTraining, beside the masked language model
    unused=(r"cls\.seq_relationship\..+",),
)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of BertModel, or of Jina's BERT, whose scores decrease with the distance."""
    if config.value("position_embedding_type") == "alibi":
        return jina.from_config(checkpoint, config, HEADS)
    return STANDARD.from_config(checkpoint, config)


BERT = replace(STANDARD.family(), safetensors={"bert": from_config})


# ERNIE (Sun et al. 2019; ERNIE 3.0, Sun et al. 2021): BERT, in later versions with a vector for the task of the text.
#
# The vector of the first task is added, as in transformers if no task is given.


def _with_tasks(config: Config, spec: ModelSpec) -> ModelSpec:
    tasks = config.count("task_type_vocab_size", 3)
    used = config.flag("use_task_id", False)
    return replace(spec, embedding=replace(spec.embedding, tasks=tasks)) if used else spec


ERNIE = StandardEncoder(
    "ernie",
    names=bert_names("ernie") | {"model.embed.tasks": "ernie.embeddings.task_type_embeddings"},
    heads=heads("ernie"),
    change=_with_tasks,
    # in models for pretraining, beside the masked language model
    unused=(r"cls\.seq_relationship\..+",),
).family()


# Megatron-BERT (Shoeybi et al. 2019): BERT with norms before attention and feed-forward, and after the last block.

MEGATRON_BERT = StandardEncoder(
    "megatron_bert",
    model_type="megatron-bert",
    names=bert_names("bert")
    | {"attention.norm": "attention.ln", "feedforward.norm": "ln", "model.norm": "bert.encoder.ln"},
    heads=HEADS,
    embedding_norm=False,
    placement="pre",
    final_norm=True,
    # in models for pretraining, beside the masked language model
    unused=(r"cls\.seq_relationship\..+",),
).family()


# RoFormer (Su et al. 2021): BERT with rotary positions, which this model introduced.


def _rotated(config: Config, spec: ModelSpec) -> ModelSpec:
    config.refuse("rotary_value", False)
    rotary = Rotary(10_000.0, spec.attention.head_dim, "interleaved")
    return replace(spec.with_attention(rotary=rotary), position=None)


DENSE = HeadLayer("classifier.dense", activation="hidden")
ROFORMER = StandardEncoder(
    "roformer",
    names=bert_names("roformer") | {"model.embed.widen": "roformer.embeddings_project"},
    heads={**heads("roformer"), "classify": TaskHead((DENSE, HeadLayer("classifier.out_proj", "labels")), "cls")},
    narrow_layers=("cls.predictions.transform.dense",),
    keys={"narrow": "embedding_size"},
    change=_rotated,
    unused=(r"(roformer\.)?encoder\.embed_positions\.weight",),  # sines and cosines
).family()


# ELECTRA (Clark et al. 2020): BERT that is trained to find the tokens of a text that a generator has replaced.
#
# The generator is a masked language model. Small models have a narrow embedding.

FOUND = (
    HeadLayer("discriminator_predictions.dense", activation="hidden"),
    HeadLayer("discriminator_predictions.dense_prediction", "labels"),
)
GENERATOR = "generator_predictions"
ELECTRA_HEADS = encoder_heads(
    TaskHead((HeadLayer("classifier.dense", activation="gelu"), HeadLayer("classifier.out_proj", "labels")), "cls"),
    fill_head(f"{GENERATOR}.dense", f"{GENERATOR}.LayerNorm", "generator_lm_head", "generator_lm_head.bias", "gelu"),
    PreTraining=TaskHead(FOUND, labels=Labels(("replaced",), "sigmoid"), task="tag"),
)

ELECTRA = StandardEncoder(
    "electra",
    names=bert_names("electra") | {"model.embed.widen": "electra.embeddings_project"},
    heads=ELECTRA_HEADS,
    narrow_layers=("generator_predictions.dense",),
    keys={"narrow": "embedding_size"},
).family()


# DistilBERT (Sanh et al. 2019): BERT without token types, trained to give BERT's outputs with half of the layers.

NAMES = TensorNames(
    {
        "model.embed": "distilbert.embeddings.word_embeddings",
        "model.embed.norm": "distilbert.embeddings.LayerNorm",
        "model.position": "distilbert.embeddings.position_embeddings",
        "attention.q": "attention.q_lin",
        "attention.k": "attention.k_lin",
        "attention.v": "attention.v_lin",
        "attention.output": "attention.out_lin",
        "attention.norm": "sa_layer_norm",
        "feedforward.up": "ffn.lin1",
        "feedforward.down": "ffn.lin2",
        "feedforward.norm": "output_layer_norm",
    },
    "distilbert.transformer.layer",
)
CLASSIFIER = (HeadLayer("pre_classifier", activation="relu"), HeadLayer("classifier", "labels"))
DISTILBERT_HEADS = encoder_heads(
    TaskHead(CLASSIFIER, "cls"),
    fill_head("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"),
    MultipleChoice=choice_head(*CLASSIFIER),
)

DISTILBERT = StandardEncoder(
    "distilbert",
    names=NAMES,
    heads=DISTILBERT_HEADS,
    keys={
        "width": "dim",
        "heads": "n_heads",
        "layers": "n_layers",
        "feed_forward": "hidden_dim",
        "activation": "activation",
        "norm_eps": "",
        "types": "",
    },
).family()


# ALBERT (Lan et al. 2020): BERT with a narrow embedding, and layers that share their tensors.

ALBERT_NAMES = bert_names("albert", "encoder.albert_layer_groups") | {
    "model.embed.widen": "albert.encoder.embedding_hidden_mapping_in",
    "attention.q": "attention.query",
    "attention.k": "attention.key",
    "attention.v": "attention.value",
    "attention.output": "attention.dense",
    "attention.norm": "attention.LayerNorm",
    "feedforward.up": "ffn",
    "feedforward.down": "ffn_output",
    "feedforward.norm": "full_layer_layer_norm",
}
POOLER, LABELS = HeadLayer("albert.pooler", activation="tanh"), HeadLayer("classifier", "labels")
ALBERT_HEADS = encoder_heads(
    TaskHead((POOLER, LABELS), "cls"),
    fill_head("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias"),
    MultipleChoice=choice_head(POOLER, LABELS),
)


def layer_names(config: Config, layers: int) -> list[str]:
    """The name of each block's tensors. The layers of a group repeat the inner layers of the group."""
    groups, inner = config.count("num_hidden_groups", 1), config.count("inner_group_num", 1)
    if layers * inner > MAX_LAYERS:
        raise config.error("inner_group_num", f"is {inner}; it must be at most {MAX_LAYERS // layers}")
    # As in transformers: the group of layer i is i / (layers / groups), in floating point.
    return [f"{int(i / (layers / groups))}.albert_layers.{k}" for i in range(layers) for k in range(inner)]


ALBERT = StandardEncoder(
    "albert",
    names=ALBERT_NAMES,
    heads=ALBERT_HEADS,
    narrow_layers=("predictions.dense",),
    widened=True,
    layer_names=layer_names,
    activation="gelu_new",
    keys={"narrow": "embedding_size"},
    unused=(r"sop_classifier\..+",),  # the order of two sentences, a task of the pre-training
).family()


# RoBERTa (Liu et al. 2019), and the encoders with its structure: CamemBERT (Martin et al. 2020), XLM-RoBERTa (Conneau
# et al. 2020), and sentence encoders and rerankers such as BGE-M3, multilingual E5 and BGE rerankers.
#
# RoBERTa is BERT with positions after the padding token, and with other heads.


def roberta_heads(base: str) -> Heads:
    """The heads, for a model whose tensors have names with the first part ``base``."""
    pooler, labels = HeadLayer(f"{base}.pooler.dense", activation="tanh"), HeadLayer("classifier", "labels")
    return {**jina.HEADS, "MultipleChoice": choice_head(pooler, labels)}


ROBERTA_STANDARD = StandardEncoder(
    "roberta",
    names=bert_names("roberta"),
    heads=roberta_heads("roberta"),
    also=("camembert", "xlm-roberta"),
    first_position=after_padding,
)


def roberta_from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of RobertaModel and the models like it, or of Jina's XLM-R, which has rotary positions."""
    if config.value("position_embedding_type") == "rotary":
        return jina.jina_embeddings_v3_from_config(checkpoint, config)
    return ROBERTA_STANDARD.from_config(checkpoint, config)


ROBERTA = replace(
    ROBERTA_STANDARD.family(), safetensors=dict.fromkeys(ROBERTA_STANDARD.family().safetensors, roberta_from_config)
)


# XLM-RoBERTa XL (Goyal et al. 2021): XLM-RoBERTa with norms before attention and feed-forward.

XLM_ROBERTA_XL = StandardEncoder(
    "xlm_roberta_xl",
    model_type="xlm-roberta-xl",
    names=bert_names("roberta")
    | {
        "attention.norm": "attention.self_attn_layer_norm",
        "feedforward.norm": "LayerNorm",
        "model.norm": "roberta.encoder.LayerNorm",
    },
    heads=roberta_heads("roberta"),
    first_position=after_padding,
    embedding_norm=False,
    placement="pre",
    final_norm=True,
    types=1,
    epsilon=1e-5,
).family()


# MPNet (Song et al. 2020): an encoder with learned positions, and with learned biases of distances for all layers.

ROBERTA_NAMES = bert_names("mpnet") | {
    "model.relative": "mpnet.encoder.relative_attention_bias",
    "attention.q": "attention.attn.q",
    "attention.k": "attention.attn.k",
    "attention.v": "attention.attn.v",
    "attention.output": "attention.attn.o",
    "attention.norm": "attention.LayerNorm",
}
BUCKETS = RelativeBuckets(32, 128)
FIRST_POSITION = 2
"""transformers numbers positions from 2 on, and computes 32 buckets, whatever config.json states."""


def with_buckets(config: Config, spec: ModelSpec) -> ModelSpec:
    """The spec with the biases of distances."""
    config.check_count("relative_attention_num_buckets", BUCKETS.count, "the number that transformers computes")
    return spec.with_attention(relative=BUCKETS)


MPNET = StandardEncoder(
    "mpnet",
    names=ROBERTA_NAMES,
    heads=roberta_heads("mpnet"),
    first_position=lambda config: FIRST_POSITION,
    keys={"types": ""},
    change=with_buckets,
).family()
