"""Reads GGUF metadata that several families share: attention, numbers by layer, the size of the vocabulary."""

from __future__ import annotations

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.positions import Pairing
from pellucid.model.rotary_metadata import gguf_rotary
from pellucid.model.spec import Attention
from pellucid.weights.checkpoint import Checkpoint


def gguf_attention(checkpoint: Checkpoint, config: Config, pairing: Pairing | None) -> Attention:
    """Causal attention from ``<architecture>.attention.*`` and ``.rope.*``.

    If ``pairing`` is None, the attention has no rotary positions.
    """
    if config.has("attention.key_length"):
        heads, head_dim = config.count("attention.head_count"), config.count("attention.key_length")
    else:
        heads = config.divisor("attention.head_count", "embedding_length")
        head_dim = config.count("embedding_length") // heads
    value_dim = config.count("attention.value_length", head_dim)
    rotary = None if pairing is None else gguf_rotary(checkpoint, config, pairing, head_dim)
    kv_heads = _gguf_kv_heads(config, heads)
    return Attention(heads, kv_heads, head_dim, head_dim**-0.5, rotary=rotary, value_dim=value_dim)


def _gguf_kv_heads(config: Config, heads: int) -> int:
    """The number of key/value heads, G. Models with recurrent layers may list the number of each layer, with zeros."""
    key = "attention.head_count_kv"
    if not config.has(key) or isinstance(config.value(key), int):
        return int(config.divisor(key, "attention.head_count", heads))
    kv_heads = gguf_of_layers(config, key)
    if heads % kv_heads:
        raise config.error(key, f"is {kv_heads}, which does not divide {config.name('attention.head_count')}")
    return kv_heads


def gguf_of_layers(config: Config, key: str) -> int:
    """The number that all layers share: the value or, if the value is a list by layer, its only number above 0."""
    value = config.value(key)
    if value is None or isinstance(value, int):
        return int(config.count(key))
    numbers = set(config.by_layer(key, config.count("block_count", limit=MAX_LAYERS))) - {0}
    if len(numbers) != 1:
        raise config.error(key, f"has {len(numbers)} different numbers above 0; it must have one")
    return numbers.pop()


def gguf_vocabulary(checkpoint: Checkpoint, config: Config) -> int:
    """The vocabulary V: the number of rows of the embedding.

    The result is 1 if the file has no embedding, because a later check reports the missing tensor.

    Raises:
        FileFormatError: the file states another number.
    """
    embedding = checkpoint.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding and embedding.shape else 1
    stated = config.count("vocab_size", rows)
    if stated != rows:
        raise config.error("vocab_size", f"is {stated:,}, but token_embd.weight has {rows:,} rows")
    return rows
