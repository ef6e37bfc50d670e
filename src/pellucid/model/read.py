"""Reads the model of an open checkpoint: runs the reader of its family, then checks all tensors and metadata keys."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod

from msgspec.structs import replace

from pellucid.errors import FileFormatError, UnsupportedModel, brief, shown
from pellucid.model.config import Config
from pellucid.model.family import Family, architectures, family_of
from pellucid.model.outputs import TWO_SIDED, Task
from pellucid.model.shapes import SMOOTHING, Shape, expected_shapes, smoothed_parts
from pellucid.model.slot_reader import CONVERSIONS, format_of, shape_of
from pellucid.model.spec import Attention, FeedForward, ModelSpec
from pellucid.model.unread_keys import check_unread
from pellucid.model.weight_map import Model, Slot, Smoothing
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.refusals import MXFP4, refuse_companion, refuse_quantized

# Chooses the matrices of encoders whose floating-point weights are converted when they are loaded.
#
# Files of encoders have float32 or float16 weights. A step of an encoder has hundreds of tokens, so multiply-adds limit
# its speed, and products of integers or of bfloat16 pairs are several times as fast as float32 products
# (docs/decisions/0052-encoders-throughput.md). With 8-bit weights, the inputs of the first products of attention and
# feed-forward are smoothed if they are the output of a norm, so that 8 bits suffice for them, too.

MATRICES = re.compile(r"blocks\.\d+\.(attention\.(q|k|v|output)|feedforward\.(gate|up|down))\.weight")
"""The slots of matrices that are multiplied with every token."""


def convert_encoder(checkpoint: Checkpoint, model: Model) -> Model:
    """The model with the float matrices of its blocks converted, if it is an encoder, else the same model.

    The matrices of a ``coarse`` encoder become Q8_0, the matrices of other encoders bfloat16.
    """
    if not model.spec.encodes:
        return model
    form = "Q8_0" if model.spec.coarse else "BF16"
    slots = {
        slot: tuple(replace(source, loaded_as=form) for source in model.sources(slot))
        if MATRICES.fullmatch(slot) and all(_fits(checkpoint, source, form) for source in model.sources(slot))
        else sources
        for slot, sources in model.slots.items()
    }
    converted = replace(model, slots=slots)
    return _smooth(converted) if model.spec.coarse else converted


def without_conversions(model: Model) -> Model:
    """The model with the slots that it had before ``convert_encoder``. Its spec stays as it is."""
    slots = {
        slot: tuple(replace(source, loaded_as="", smoothing=None) for source in model.sources(slot))
        for slot in model.slots
        if not slot.endswith(SMOOTHING)
    }
    return replace(model, slots=slots)


def _smooth(model: Model) -> Model:
    """The ``coarse`` encoder with smoothed inputs, where a norm makes them and all their matrices are converted."""
    blocks, slots = [], {**model.slots}
    for index, block in enumerate(model.spec.blocks):
        for part in ("attention", "feedforward"):
            kind = getattr(block, part)
            if not isinstance(kind, (Attention, FeedForward)):
                continue
            smoothed = replace(block, **{part: replace(kind, smoothed=True)})
            matrices = [f"blocks.{index}.{part}.{name}.weight" for name in smoothed_parts(smoothed)[part]]
            norm = _norm_of_input(model.spec, index, part)
            weight = model.sources(f"{norm}.weight")
            if not weight or not all(_is_converted(model.sources(matrix)) for matrix in matrices):
                continue
            # The error of values counts most, then the error of the neurons.
            floats = tuple(replace(source, loaded_as="") for source in model.sources(matrices[-1]))
            how = Smoothing(weight, model.sources(f"{norm}.bias"), floats)
            for matrix in matrices:
                slots[matrix] = tuple(replace(source, smoothing=how) for source in model.sources(matrix))
            slots[f"blocks.{index}.{part}.{SMOOTHING}"] = replace(weight[0], smoothing=how)
            block = smoothed
        blocks.append(block)
    return replace(model, spec=replace(model.spec, blocks=tuple(blocks)), slots=slots)


def _norm_of_input(spec: ModelSpec, index: int, part: str) -> str:
    """The slot of the norm whose output a part of a block reads, in a ``coarse`` encoder; "": another operation's."""
    if part == "feedforward":
        return f"blocks.{index}.attention.norm"
    if index:
        after_convolution = index == 1 and spec.convolution
        return "convolution.norm" if after_convolution else f"blocks.{index - 1}.feedforward.norm"
    embedding = spec.embedding
    last = embedding.norm and not embedding.norm_first and (not embedding.narrow or embedding.norm_last)
    return "embed.norm" if last else ""


def _is_converted(sources: tuple[Slot, ...]) -> bool:
    return bool(sources) and all(source.loaded_as for source in sources)


def _fits(checkpoint: Checkpoint, source: Slot, form: str) -> bool:
    """True if a tensor has floats, in rows of whole blocks."""
    tensor = checkpoint.tensors.get(source.tensor)
    if tensor is None or not format_of(tensor, source).packed.is_float:
        return False
    return shape_of(tensor, source)[-1] % CONVERSIONS[form][0].block == 0


NEAR = 0.8
"""Minimum similarity of an unknown architecture and the name that the error suggests, from 0 to 1."""
OUTPUT_KEYS = ("attention.causal", "classifier.", "decision.", "dense_", "embedding_length_out", "pooling_type")
"""The first letters of keys in GGUF that ``decoder_outputs.py`` reads, after the architecture."""


def read_model(
    checkpoint: Checkpoint,
    task: Task | None = None,
    token_id: Callable[[str], int | None] = lambda token: None,
    adapter: str = "",
) -> Model:
    """Read the spec of a checkpoint, and the tensors that fill its slots.

    ``task`` is the task of the model if the file allows several (None: the task that the file states). ``token_id``
    finds the id of a token in the vocabulary, which rerankers made of language models need. ``adapter`` is the name of
    an adapter in the file that changes the weights ("": none).

    Raises:
        UnsupportedModel: the architecture, or an option of the file, is not implemented. The message lists the
            implemented names.
        FileFormatError: the metadata contradicts itself, or a tensor is missing or has another shape.
    """
    refuse_companion(checkpoint)
    refuse_quantized(checkpoint)
    config = Config(checkpoint.metadata, checkpoint.path, task=task or "", adapter=adapter, token_id=token_id)
    if checkpoint.kind != "gguf":
        from pellucid.model.decision_heads import is_headed
        from pellucid.model.text_part import TABLE, TextPart

        if is_headed(checkpoint):
            return _read_headed(checkpoint, config)
        table = checkpoint.metadata.get(TABLE)
        if isinstance(table, Mapping) and table:
            _check_quantization(config)
            text = TextPart(checkpoint)
            return text.in_file(_read(text, text.config(config)))
    return _read(checkpoint, config)


def _read_headed(checkpoint: Checkpoint, parent: Config) -> Model:
    from pellucid.model.decision_heads import HeadedPart

    text = HeadedPart(checkpoint)
    config = text.config(parent)
    _check_quantization(config)
    return text.in_file(_read(text, config, text.headed))


def _check_quantization(config: Config) -> None:
    """Refuse a quantization that ``refuse_quantized`` has not named, and read the keys of MXFP4."""
    stated = config.value("quantization_config")
    if isinstance(stated, Mapping) and stated.get("quant_method") == MXFP4:
        # Count these keys as read. Their values are not needed, because the tensors show which matrices are quantized.
        for key in ("quant_method", "modules_to_not_convert", "dequantize"):
            config.table("quantization_config").value(key)
    else:
        config.refuse("quantization_config", {})


def planned_from_config(checkpoint: Checkpoint) -> Model:
    """The model that a ``config.json`` describes, of a checkpoint without tensors.

    Parts that only tensors show, such as a head beside a sentence encoder, are absent.

    Raises: as ``read_model``.
    """
    from pellucid.model.text_part import TABLE, TextPart

    config = Config(checkpoint.metadata, checkpoint.path)
    if isinstance(checkpoint.metadata.get(TABLE), Mapping):
        text = TextPart(checkpoint)
        config, checkpoint = text.config(config), text
    architecture, family = _architecture(checkpoint, config)
    return family.readers(checkpoint.kind)[architecture](checkpoint, config)


def _architecture(checkpoint: Checkpoint, config: Config) -> tuple[str, Family]:
    architecture = config.text("general.architecture" if checkpoint.kind == "gguf" else "model_type")
    family = family_of(architecture, checkpoint.kind)
    if family is None:
        families = architectures(checkpoint.kind)
        from difflib import get_close_matches

        nearest = get_close_matches(architecture[:100].lower(), families, n=1, cutoff=NEAR)
        raise UnsupportedModel(
            f"{checkpoint.path.name}: architecture {brief(architecture)} is not supported"
            f"{f'; the nearest name is {nearest[0]}' if nearest else ''}: `pellucid list --families` shows all that are"
        )
    return architecture, family


def _read(checkpoint: Checkpoint, config: Config, change: Callable[[Model], Model] = lambda model: model) -> Model:
    gguf = checkpoint.kind == "gguf"
    architecture, family = _architecture(checkpoint, config)
    _check_quantization(config)
    model = change(family.readers(checkpoint.kind)[architecture](checkpoint, config))
    if model.spec.generates and not model.spec.encoder and not _only_generates(checkpoint, config, architecture, model):
        from pellucid.model.decoder_outputs import as_encoder

        model = as_encoder(checkpoint, config, model)
    if config.task and model.spec.task != config.task:
        raise UnsupportedModel(
            f"{checkpoint.path.name}: task={config.task}: the file's task is {model.spec.task}, and the family "
            f"{family.name} has no other: leave task out"
        )
    if config.adapter != model.spec.adapter:
        known = ", ".join(map(shown, model.spec.adapters)) or "none"
        raise UnsupportedModel(
            f"{checkpoint.path.name}: adapter={brief(config.adapter)}: the file has no adapter of this name (known: "
            f"{known}): leave adapter out"
        )
    if not gguf and model.spec.encodes:
        model = replace(model, spec=_shortened(checkpoint, model.spec))
    _check_layers(checkpoint, model)
    _check_tensors(checkpoint, model)
    _check_unused(checkpoint, model, family, config)
    for key in ("bos_token_id", "eos_token_id"):  # keys of config.json; the tokenizer checks the other ids
        config.token_ids(key, model.spec.embedding.vocabulary)
    check_unread(config, f"{architecture}." if gguf else "")
    return model


def _only_generates(checkpoint: Checkpoint, config: Config, architecture: str, model: Model) -> bool:
    """True if a decoder in GGUF states no other output than text, so ``decoder_outputs.py`` has nothing to read."""
    prefix = f"{architecture}."
    return (
        checkpoint.kind == "gguf"
        and config.task in ("", "generate")
        and architecture not in TWO_SIDED
        and "dense_2.weight" not in checkpoint.tensors
        and not any(key.removeprefix(prefix).startswith(OUTPUT_KEYS) for key in checkpoint.metadata)
        and all(attention.causal for attention in model.spec.attentions)
    )


def _shortened(checkpoint: Checkpoint, spec: ModelSpec) -> ModelSpec:
    """The spec with the maximum tokens of a text that the files beside the model state as its context."""
    from pellucid.model.sentence_modules import max_tokens

    longest = max_tokens(checkpoint)
    if not 0 < longest < spec.context:
        return spec
    return replace(spec, context=longest, positions=spec.context)


def _check_tensors(checkpoint: Checkpoint, model: Model) -> None:
    for slot, shape in expected_shapes(model.spec).items():
        sources = model.sources(slot)
        if not sources:
            raise FileFormatError(
                checkpoint.path, slot, f"no tensor fills it; the model needs a tensor of shape {shape}"
            )
        for source in sources:
            if source.tensor not in checkpoint.tensors:
                raise FileFormatError(checkpoint.path, source.tensor, f"tensor missing; the model needs it as {slot}")
        tensors = [checkpoint.tensors[source.tensor] for source in sources]
        shapes = [shape_of(tensor, source) for tensor, source in zip(tensors, sources)]
        joined, needed, wrong = _joined(shapes), shape, tensors[0]
        of_experts = len(shape) == 3 or sources[0].flat
        if of_experts and len(shapes) == shape[0] and len(shapes[0]) == len(shape) - 1:  # a source per expert
            needed = shape[1:]
            wrong, joined = next((pair for pair in zip(tensors, shapes) if pair[1] != needed), (wrong, needed))
        elif shape == (1, *joined):  # a file may store a matrix of one row as a vector
            joined = shape
        if joined != needed:
            one_tensor = len(sources) == 1 and sources[0].rows is None
            has = (
                f"tensor has shape {wrong.shape}" if one_tensor else f"{slot}: its tensors together have shape {joined}"
            )
            raise FileFormatError(checkpoint.path, wrong.name, f"{has}; the model needs {needed}", wrong.offset)


def _joined(shapes: Sequence[Shape]) -> Shape:
    """The shape of the tensors after their rows are concatenated; the first shape if the shapes do not match."""
    if len(shapes) == 1 or not all(shapes) or any(shape[1:] != shapes[0][1:] for shape in shapes):
        return shapes[0]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _check_unused(checkpoint: Checkpoint, model: Model, family: Family, config: Config) -> None:
    """Refuse tensors and rows that no slot uses, because ignoring them, for example a bias, would change the results.

    Tensors of parts that are not loaded only cause a warning.
    """
    used: dict[str, list[tuple[int, int] | None]] = {}
    for slot in model.slots:
        for source in model.sources(slot):
            used.setdefault(source.tensor, []).append(source.columns or source.rows)
    for source in model.ignored:
        used.setdefault(source.tensor, []).append(source.rows)
    silent, reported = (re.compile("|".join(patterns) or r"(?!)") for patterns in (family.unused, family.skipped))
    layers, mtp_layers = _layer_pattern(model), _mtp_layers(checkpoint, model)

    def skipped(name: str) -> bool:
        layer = layers.match(name) if mtp_layers else None
        return reported.fullmatch(name) is not None or (layer is not None and int(layer[1]) in mtp_layers)

    others = [
        name for name in checkpoint.tensors if not (name in used or name in config.tensors or silent.fullmatch(name))
    ]
    reported_names = [name for name in others if skipped(name)]
    if reported_names:
        warnings.warn(
            f"{checkpoint.path.name}: {len(reported_names):,} tensors of parts that Pellucid does not run are not "
            f"read: {shown(reported_names[0])} ...",
            stacklevel=2,
        )
    unused = sorted(set(others).difference(reported_names))
    if unused:
        more = f" and {len(unused) - 1:,} more tensors" if unused[1:] else ""
        raise UnsupportedModel(
            f"{checkpoint.path.name}: tensor {shown(unused[0])}{more}: not used by the implementation of the family "
            f"{model.spec.family}; ignoring it would change the results"
        )
    for name, parts in used.items():
        if name in checkpoint.tensors and (gap := _unused_rows(checkpoint, name, model, parts)):
            raise UnsupportedModel(
                f"{checkpoint.path.name}: tensor {shown(name)}: rows {gap[0]:,} to {gap[1]:,} are not used; ignoring "
                "them would change the results"
            )


def _unused_rows(
    checkpoint: Checkpoint, name: str, model: Model, parts: list[tuple[int, int] | None]
) -> tuple[int, int] | None:
    """The first range of rows of a tensor that no slot uses; None if all rows are used."""
    ranges = [part for part in parts if part is not None]
    if len(ranges) < len(parts):  # a slot uses the whole tensor
        return None
    sources = (source for slot in model.slots for source in model.sources(slot) if source.tensor == name)
    source = next(sources)
    # Columns of a transposed matrix are rows of the stored matrix.
    source = replace(source, rows=None, columns=None, transpose=source.transpose and source.columns is None)
    stored_shape = shape_of(checkpoint.tensors[name], source)
    rows = stored_shape[0] if len(stored_shape) == 1 else prod(stored_shape[:-1])
    used_rows = 0
    for start, stop in sorted(ranges):
        if start > used_rows:
            return used_rows, start
        used_rows = max(used_rows, stop)
    return (used_rows, rows) if used_rows < rows else None


def _check_layers(checkpoint: Checkpoint, model: Model) -> None:
    """Refuse a file with more layers than its metadata states, because the model would run without its last layers."""
    layers, pattern = len(model.spec.blocks), _layer_pattern(model)
    numbers = {int(match[1]) for name in checkpoint.tensors if (match := pattern.match(name))}
    layers_in_file = max(numbers - _mtp_layers(checkpoint, model), default=-1) + 1
    if layers_in_file > layers:
        raise FileFormatError(
            checkpoint.path, model.layer_count, f"is {layers}, but the file has tensors of {layers_in_file:,} layers"
        )


MTP_TENSOR = "eh_proj"
"""A tensor that only layers for multi-token prediction have. It joins the last hidden state with the embedding of the
next token (DeepSeek-AI 2024, DeepSeek-V3, section 2.2).
"""


def _mtp_layers(checkpoint: Checkpoint, model: Model) -> set[int]:
    """Numbers of the layers for multi-token prediction, which are not loaded."""
    pattern, layers = _layer_pattern(model), len(model.spec.blocks)
    numbers = {int(match[1]) for name in checkpoint.tensors if MTP_TENSOR in name and (match := pattern.match(name))}
    return numbers & set(range(layers, layers + model.mtp_layers))


def _layer_pattern(model: Model) -> re.Pattern[str]:
    """A pattern that matches the beginning of a block's tensor names. Its group matches the number of the block."""
    # In every format, the tensor names of two blocks differ only in the number of the block.
    prefixes = {
        source.tensor.partition(".0.")[0]
        for slot in model.slots
        if slot.startswith("blocks.0.")
        for source in model.sources(slot)
    }
    return re.compile(rf"(?:{'|'.join(map(re.escape, prefixes))})\.(\d{{1,9}})\..")
