"""From an opened checkpoint to its model: the family that reads it, and checks of all that it holds."""

from __future__ import annotations

import re

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import brief, shown
from pellucid.model.config import Config
from pellucid.model.family import Family, architectures
from pellucid.model.keys import check_unread
from pellucid.model.shapes import expected_shapes
from pellucid.model.spec import Model
from pellucid.weights.checkpoint import Checkpoint


def read_model(checkpoint: Checkpoint) -> Model:
    """The spec of a checkpoint, and which tensor fills which slot.

    Raises:
        UnsupportedModel: the architecture, or something it asks for, is not implemented; lists those known.
        FileFormatError: the metadata contradicts itself, or a tensor is missing or has another shape.
    """
    config, gguf = Config(checkpoint.metadata, checkpoint.path), checkpoint.kind == "gguf"
    architecture = config.text("general.architecture" if gguf else "model_type")
    families = architectures(checkpoint.kind)
    if architecture not in families:
        raise UnsupportedModel(
            f"{checkpoint.path.name}: architecture {brief(architecture)} is not supported "
            f"(known for {checkpoint.kind}: {', '.join(sorted(families))})"
        )
    config.refuse("quantization_config", {})
    family = families[architecture]
    model = family.readers(checkpoint.kind)[architecture](checkpoint, config)
    _check_tensors(checkpoint, model)
    _check_layers(checkpoint, model, f"{architecture}.block_count" if gguf else "num_hidden_layers")
    _check_unused(checkpoint, model, family)
    for key in ("bos_token_id", "eos_token_id"):  # of config.json; the tokenizer looks at the others
        config.token_ids(key, model.spec.embedding.vocabulary)
    check_unread(config, f"{architecture}." if gguf else "")
    return model


def _check_tensors(checkpoint: Checkpoint, model: Model) -> None:
    wanted = expected_shapes(model.spec)
    for slot, shape in wanted.items():
        source = model.slots.get(slot)
        if source is None:
            raise FileFormatError(
                checkpoint.path, slot, f"no tensor fills it; the model needs one of {shape}"
            )
        tensor = checkpoint.tensors.get(source.tensor)
        if tensor is None:
            raise FileFormatError(
                checkpoint.path, source.tensor, f"tensor missing; the model needs it as {slot}"
            )
        if tensor.shape != shape:
            raise FileFormatError(
                checkpoint.path,
                source.tensor,
                f"tensor has shape {tensor.shape}; the model needs {shape}",
                tensor.offset,
            )


def _check_unused(checkpoint: Checkpoint, model: Model, family: Family) -> None:
    """A tensor that nobody uses, such as a bias, would have changed the result."""
    known = {source.tensor for source in model.slots.values()}
    pattern = re.compile("|".join(family.unused) or r"(?!)")
    left = sorted(name for name in checkpoint.tensors if name not in known and not pattern.fullmatch(name))
    if left:
        more = f" and {len(left) - 1:,} more tensors" if left[1:] else ""
        raise UnsupportedModel(
            f"{checkpoint.path.name}: tensor {shown(left[0])}{more}: {model.spec.family} as it is implemented does "
            "not use it; ignoring it would change the results"
        )


def _check_layers(checkpoint: Checkpoint, model: Model, key: str) -> None:
    """A file with more layers than it says would run, without its last ones."""
    # The names of a block's tensors differ only by its number, in every format.
    prefixes = {
        source.tensor.partition(".0.")[0]
        for slot, source in model.slots.items()
        if slot.startswith("blocks.0.")
    }
    pattern = re.compile(rf"(?:{'|'.join(map(re.escape, prefixes))})\.(\d{{1,9}})\..+")
    held = max(int(match[1]) + 1 for name in checkpoint.tensors if (match := pattern.fullmatch(name)))
    if held > len(model.spec.blocks):
        raise FileFormatError(
            checkpoint.path, key, f"is {len(model.spec.blocks)}, but the file has tensors of {held:,} layers"
        )
