"""A recorded run in one file: the request, the generated tokens, and arrays of a trace.

    run = llm.record("The capital of France is", "blocks.*.residual", max_new_tokens=8)
    run.save("paris.run")
    run = RecordedRun.open("paris.run")         # needs no model
    llm.resume(run, 0, token=" Lyon").text      # what if it had said Lyon?

The file is in safetensors format. The entry "pellucid.run" of its metadata is a JSON document with all fields except
the arrays. The contents are not trusted: lengths, types and shapes are checked, and the file holds no code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from msgspec import Meta, ValidationError, convert
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, InvalidRequest, brief, reason
from pellucid.model.describe import block_sizes, model_sizes
from pellucid.model.positions import Rotary
from pellucid.model.shapes import ENCODER
from pellucid.model.spec import ModelSpec
from pellucid.plan.dataflow import dataflow
from pellucid.plan.plan import DistanceTable, KeyTable, Plan
from pellucid.trace.selection import Selection
from pellucid.weights.checkpoint import ModelFile
from pellucid.weights.json_files import parse_json
from pellucid.weights.safetensors import header_of, read_table

KEY, VERSION = "pellucid.run", 1
TYPES = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4")}
NAMES = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32"}
MOST_TOKENS = MOST_SIZE = 1 << 24
MOST_RANK = 4  # dimensions of an array
SOURCE_KEYS = (("cross", "k"), ("cross", "v"))
"""The last two parts of the names of points in the decoder whose rows are the tokens of the source."""
Ids: TypeAlias = Annotated[list[Annotated[int, Meta(ge=0, lt=1 << 31)]], Meta(max_length=MOST_TOKENS)]


@dataclass(frozen=True, repr=False, eq=False)
class RecordedRun(Mapping[str, NDArray[Any]]):
    """A run: the ``prompt`` ids, the generated ``ids``, the ``pieces`` (texts) of both, and the generated ``text``.

    In an encoder-decoder, ``source`` has the ids of the source, ``source_pieces`` their texts, and ``prompt`` the first
    tokens of the decoder.

    ``options`` are the request's options, and ``seed`` is the seed that was used. ``chain`` lists the sampler steps
    that had an effect, and ``edits`` describes the edits. ``model`` identifies the model (``identity``), ``shape``
    describes it (``shape_of``). ``parts`` has the ``first`` token, the ``heads`` and the ``dims`` of each array that
    holds only a part of its point. ``question`` is the prompt as text. ``characters`` lists the characters that span
    several tokens: [first, stop, text] (``tokenize/stages/decode.py``). ``answers`` holds responses of the server
    for the page: [path, body, response]. ``notes`` are remarks for readers.

    As a mapping, the run holds the recorded arrays by point name: (T, ...), with a row for each token that was read, or
    for each selected token. Values of an encoder-decoder's encoder have a row for each token of the source.
    """

    model: dict[str, Any]
    prompt: Ids
    ids: Ids
    pieces: list[str]
    text: str
    finish_reason: str | None
    seed: int | None
    options: dict[str, Any]
    chain: list[dict[str, Any]]
    edits: list[str] = field(default_factory=list)
    shape: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    question: str = ""
    answers: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    characters: list[list[Any]] = field(default_factory=list)
    source: Ids = field(default_factory=list)
    source_pieces: list[str] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"RecordedRun({self.model.get('name')!r}, {len(self.prompt):,} + {len(self.ids):,} tokens, "
            f"{len(self.arrays):,} arrays, {brief(self.text)})"
        )

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The recorded array of a point. Raises InvalidRequest if the run has no array of this name."""
        if name not in self.arrays:
            raise InvalidRequest(f"point={brief(name)}: the run has no such array; it has {', '.join(list(self)[:5])}")
        return self.arrays[name]

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def get(self, name: str, default: Any = None) -> Any:
        """The recorded array of a point, or the default if the run has no array of this name."""
        return self.arrays.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def save(self, path: str | Path) -> None:
        """Write the run to a file.

        Raises:
            InvalidRequest: the file cannot be written.
        """
        try:
            with open(path, "wb") as file:
                for part in self._bytes():
                    file.write(part)
        except OSError as error:
            raise InvalidRequest(f"path={str(path)!r}: the run cannot be written: {reason(error)}") from error

    def _bytes(self) -> Iterator[bytes]:
        """Yield the contents of the run's file, in parts."""
        facts = {name: getattr(self, name) for name in FIELDS}
        metadata = {KEY: json.dumps({"version": VERSION, **facts})}
        yield header_of({name: (NAMES[values.dtype], values.shape) for name, values in self.arrays.items()}, metadata)
        for values in self.arrays.values():
            yield np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()

    def html(self) -> str:
        """Return the page of ``pellucid look`` with this run, as a self-contained HTML file."""
        from pellucid.web.bundle import page_of_run

        return page_of_run(f"{self.model.get('name')}: {brief(self.text)}", "this report", b"".join(self._bytes()))

    def _repr_html_(self) -> str:
        """The page of ``html()`` inside a notebook (Jupyter, marimo), without a server or a connection."""
        from pellucid.util.display import framed

        return framed(self.html(), f"a recorded run of {self.model.get('name')}")

    @classmethod
    def open(cls, path: str | Path) -> RecordedRun:
        """Read a run from a file.

        Raises:
            FileFormatError: the file is not a recorded run, or is damaged.
        """
        path = Path(path)
        file = ModelFile(path)
        try:
            table, metadata = read_table(path, file)
            text = metadata.get(KEY) if isinstance(metadata, dict) else None
            if not isinstance(text, str):
                raise FileFormatError(path, "__metadata__", f"has no {KEY}: the file is not a recorded run")
            facts = parse_json(path, KEY, text.encode("utf-8", "surrogatepass"), 8)
            run = _parsed(path, facts)
            arrays = {}
            for name, tensor in table.items():
                if tensor.format not in TYPES:
                    raise FileFormatError(path, f"tensor {brief(name)}", f"is {tensor.format}, not F32 or I32")
                _check_shape(path, name, tensor.shape, len(run.pieces), len(run.source))
                raw = file.read(tensor.offset, tensor.nbytes)
                arrays[name] = np.frombuffer(raw, TYPES[tensor.format]).reshape(tensor.shape)
        finally:
            file.close()
        return replace(run, arrays=arrays)


FIELDS = [part.name for part in fields(RecordedRun) if part.name != "arrays"]
"""The names of the fields in the document of a file."""


def _parsed(path: Path, facts: Any) -> RecordedRun:
    """The run that a file's document describes, without arrays. Raises FileFormatError."""
    version = facts.get("version") if isinstance(facts, dict) else None
    if version != VERSION:
        raise FileFormatError(path, KEY, f"version {brief(version)} is unknown; this release reads {VERSION}")
    try:
        run = convert({name: facts[name] for name in FIELDS if name in facts}, RecordedRun)
    except ValidationError as error:
        raise FileFormatError(path, KEY, brief(str(error))) from None
    if len(run.pieces) != len(run.prompt) + len(run.ids):
        raise FileFormatError(path, f"{KEY} pieces", "must have a text for each token")
    if len(run.source_pieces) != len(run.source):
        raise FileFormatError(path, f"{KEY} source_pieces", "must have a text for each token of the source")
    if not all(_is_character(character, len(run.pieces)) for character in run.characters):
        raise FileFormatError(path, f"{KEY} characters", "must each have a first token, an end, and a text")
    return run


def _is_character(value: Any, tokens: int) -> bool:
    """True if a value is [first, stop, text] of a character in a run of ``tokens`` tokens."""
    if not isinstance(value, list) or [type(part) for part in value] != [int, int, str]:
        return False
    first, stop = int(value[0]), int(value[1])
    return 0 <= first < stop <= tokens


def _check_shape(path: Path, name: str, shape: Sequence[int], tokens: int, source: int) -> None:
    """Check the shape of an array of a run of ``tokens`` tokens, and ``source`` tokens of a source.

    Raises FileFormatError.

    Each size has its own bound. A bound on the product is not enough: a size of 0 makes any product 0.
    """
    *_, part, ends = ["", *name.split(".")]
    most = source if name.startswith(ENCODER) or (part, ends) in SOURCE_KEYS else tokens
    rows = [(size, most) for size in shape[:1]]
    if ends in ("pattern", "scores") and len(shape) == 3:
        rows = [(shape[1], most), (shape[2], source if part == "cross" else most)]
    if not 1 <= len(shape) <= MOST_RANK or max(shape) > MOST_SIZE or any(size > most for size, most in rows):
        of_source = f" with a source of {source:,}" if source else ""
        raise FileFormatError(
            path,
            f"tensor {brief(name)} shape",
            f"{brief(list(shape))} does not fit a run of {tokens:,} tokens{of_source}: an array has 1 to {MOST_RANK} "
            f"dimensions of at most {MOST_SIZE:,}, and a row for each token at most",
        )


def identity(spec: ModelSpec) -> dict[str, Any]:
    """The identity of a model in a recorded run. A run resumes only on a model with the same identity."""
    return {"name": spec.name, "family": spec.family, "vocabulary": spec.embedding.vocabulary}


def shape_of(spec: ModelSpec, plan: Plan, tokens: int) -> dict[str, Any]:
    """The description of a model for the page.

    ``position`` is the kind of position encoding: "rotary", "added", "alibi", "relative" or "none". ``slopes`` are the
    ALiBi slopes of the heads. ``tokens`` is the size of the vocabulary, which may be smaller than the number of logits.
    ``angles`` maps the point of each table of angles to the blocks that rotate by this table. ``blocks`` and ``facts``
    are sizes of the blocks and of the model (``model/describe.py``), and ``graph`` is the dataflow between its
    points (``plan/dataflow.py``). ``encoder`` has the sizes of the blocks of an encoder-decoder's encoder.
    """
    tables = [table for table in plan.tables.values() if isinstance(table, (DistanceTable, KeyTable))]
    position = "alibi" if tables else "relative" if plan.tables else "none"
    if spec.position is not None:
        position = "added"
    if any(isinstance(attention.rotary, Rotary) for attention in spec.attentions):
        position = "rotary"
    slopes = list(tables[0].slopes) if tables else []
    return {
        "position": position,
        "slopes": slopes,
        "width": spec.embedding.width,
        "tokens": tokens,
        "angles": _angles(plan.source or plan),
        "blocks": block_sizes(spec),
        "encoder": block_sizes(spec.encoder) if spec.encoder else [],
        "facts": model_sizes(spec),
        "graph": dataflow(plan).as_dict(),
    }


def _angles(plan: Plan) -> dict[str, list[int]]:
    """Map the point of each table of angles to the blocks whose operations read this table."""
    points: dict[str, str] = {}
    blocks: dict[str, dict[int, None]] = {}
    for op in plan.operations:
        if op.stage.startswith("position.angles"):
            points |= dict.fromkeys(op.writes, op.stage)
        elif op.stage.startswith("blocks."):
            for name in op.reads:
                if name in points:
                    blocks.setdefault(points[name], {})[int(op.stage.split(".")[1])] = None
    return {point: list(layers) for point, layers in blocks.items()}


def parts_of(selected: Iterable[Selection]) -> dict[str, dict[str, Any]]:
    """The selected parts of points, by point name. Points that are selected as a whole are left out."""
    parts = {}
    for selection in selected:
        part: dict[str, Any] = {}
        tokens = selection.tokens
        if tokens.is_relative or [own.step for own in tokens.ranges] != [1] or selection.keys is not None:
            raise InvalidRequest(
                f"point={brief(selection.name)}: a recorded run takes one range of positions, such as tokens=5:9, and "
                "all keys"
            )
        if selection.tokens.start:
            part["first"] = selection.tokens.start
        if selection.point.heads and not selection.has_all_heads:
            part["heads"] = list(selection.heads)
        if selection.dims is not None:
            part["dims"] = list(selection.dims)
        if part:
            parts[selection.name] = part
    return parts


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as plain values, which a file can hold.

    Raises:
        InvalidRequest: an option is a function or another object.
    """
    plain = {}
    for name, value in options.items():
        try:
            plain[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            raise InvalidRequest(
                f"{name}={brief(value)}: a recorded run can hold only plain values: leave this option out"
            ) from None
    return plain
