"""Messages between ingresses and replicas, and between stages. They are MessagePack with plain values and no code.

A frame is a list of messages. Each message is a list: its kind, then its fields. "Plain values" are the values that
MessagePack can encode: None, bools, numbers, strings, bytes, lists and mappings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import msgpack
import numpy as np
from msgspec import structs
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid import errors
from pellucid.decide.questions import Decision, DecisionExplanation, Decisions, Question
from pellucid.engine.output import Beams, BeamText, Timings, TokenOutput, Usage
from pellucid.engine.request import PromptOutput
from pellucid.errors import InvalidRequest, KernelError, PellucidError, brief
from pellucid.receipts.receipt import ModelIdentity
from pellucid.sample.beams import Node
from pellucid.sample.chain import TokenTrace
from pellucid.sample.logprobs import Logprobs, StepTrace, TokenLogprobs
from pellucid.sample.step import SamplerStep
from pellucid.trace.edits import Edit
from pellucid.trace.linear_probe import LinearProbe

VERSION = 10
"""Version of this protocol. Replicas and stages refuse a peer of another version."""
MAX_FRAME, MAX_MESSAGES = 64 << 20, 60_000  # limits of a frame: bytes, messages
PIECE, MAX_PIECES = 4 << 20, 160 << 20  # limits in bytes: one piece, all pieces of a value
MAX_SEQUENCES = 256  # sequences of one request
# Milliseconds. HEARTBEAT is the time between two heartbeats. A connection without a heartbeat for DEAD counts as lost.
HEARTBEAT, DEAD = 1000, 3000


class WireError(PellucidError):
    """A frame does not follow this protocol."""


def pack(messages: Sequence[Sequence[Any]]) -> bytes:
    """Pack messages into a frame."""
    frame: bytes = msgpack.packb(messages, use_bin_type=True)
    return frame


def frames(messages: Sequence[Sequence[Any]]) -> Iterator[bytes]:
    """Pack messages into frames within the limits. A message that is too large is replaced by an error message."""
    frame, size = list[bytes](), 0
    for message in messages:
        packed: bytes = msgpack.packb(message, use_bin_type=True)
        if len(packed) > MAX_FRAME // 2:
            error = InvalidRequest(
                f"a response of {len(packed) >> 20:,} MiB is too large for a cluster: request fewer values"
            )
            packed = msgpack.packb(["error", message[1], *error_fields(error)])
        if frame and (size + len(packed) > MAX_FRAME // 2 or len(frame) >= MAX_MESSAGES):
            yield _listed(frame)
            frame, size = [], 0
        frame.append(packed)
        size += len(packed)
    if frame:
        yield _listed(frame)


def _listed(packed: Sequence[bytes]) -> bytes:
    """Join packed messages into a frame: a MessagePack list of up to 65,535 elements."""
    return b"\xdc" + len(packed).to_bytes(2, "big") + b"".join(packed)


def unpack(frame: bytes) -> list[list[Any]]:
    """Return the messages of a frame. Raises WireError if the frame is malformed."""
    try:
        messages = msgpack.unpackb(frame, raw=False, strict_map_key=False)
    except Exception as error:  # any error of MessagePack
        raise WireError(f"a frame of {len(frame):,} bytes is not valid MessagePack: {error}") from None
    if not isinstance(messages, list) or not all(
        isinstance(message, list) and message and isinstance(message[0], str) for message in messages
    ):
        raise WireError(f"a frame of {len(frame):,} bytes has no messages of this protocol")
    return messages


def pieces(value: bytes) -> Iterator[tuple[bytes, bool]]:
    """Split bytes into one or more pieces that fit into messages. Yield each piece, and True if more pieces follow."""
    for start in range(0, max(len(value), 1), PIECE):
        yield value[start : start + PIECE], start + PIECE < len(value)


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the options after checking that all values can be sent.

    Raises:
        InvalidRequest: a value is a function or another object that cannot be sent.
    """
    for name, value in options.items():
        try:
            pack([["option", value]])
        except (TypeError, ValueError, OverflowError):
            raise InvalidRequest(f"{name}={brief(value)}: cannot be sent to a replica: give plain values") from None
    return dict(options)


def edits_fields(edits: Sequence[Edit]) -> list[Any]:
    """The fields of edits. Raises InvalidRequest if they have too many values."""
    size = sum(np.size(edit.values) * 4 for edit in edits if edit.values is not None)
    if size > MAX_FRAME // 2:
        raise InvalidRequest(f"edits has {size >> 20:,} MiB of values; the limit is {MAX_FRAME >> 21} MiB: change less")
    return [edit_fields(edit) for edit in edits]


def edit_fields(edit: Edit) -> list[Any]:
    """Return an edit as plain values.

    Raises:
        InvalidRequest: the edit has a function, which cannot be sent.
    """
    if edit.function is not None:
        raise InvalidRequest(f"edit of {brief(edit.where)}: a function cannot be sent to a replica: give its values")
    values = None if edit.values is None else array_fields(np.asarray(edit.values, np.float32))
    return [edit.where, edit.factor, values]


def edit_of(fields: Sequence[Any]) -> Edit:
    """Rebuild an edit from plain values. Raises WireError or InvalidRequest if the values are invalid."""
    where, factor, values = fields
    return Edit(where, factor, None if values is None else array_of(values))


def probe_fields(probe: LinearProbe) -> list[Any]:
    """Return a linear probe as plain values."""
    weights = array_fields(np.asarray(probe.weights, np.float32))
    return [probe.name, probe.point, weights, probe.bias, probe.sigmoid, probe.stop_above]


def probe_of(fields: Sequence[Any]) -> LinearProbe:
    """Rebuild a linear probe from plain values. Raises WireError or InvalidRequest if the values are invalid."""
    name, point, weights, *others = fields
    return LinearProbe(name, point, array_of(weights), *others)


def decisions_fields(decisions: Decisions) -> dict[str, Any]:
    """Return decisions as plain values, without their questions."""
    answers = {}
    for id, one in decisions.items():
        plain = {name: getattr(one, name) for name in ("value", "confidence", "temperature")}
        explanation = None if one.explanation is None else one.explanation.as_dict()
        listed = {"probabilities": dict(one.probabilities), "scores": list(one.scores)}
        answers[id] = {**plain, **listed, "explanation": explanation}
    return {"answers": answers, "prompt_tokens": decisions.prompt_tokens}


def decisions_of(fields: Mapping[str, Any], questions: Sequence[Question]) -> Decisions:
    """Rebuild decisions from plain values and their questions."""
    answers = {}
    for question in questions:
        own = fields["answers"][question.id]
        explanation = own["explanation"] and DecisionExplanation.from_dict(own["explanation"])
        answers[question.id] = Decision(**{**own, "question": question, "explanation": explanation})
    return Decisions(answers, fields["prompt_tokens"])


def token_fields(token: TokenOutput) -> list[Any]:
    """Return a token output as plain values."""
    logprobs, trace = token.logprobs, token.trace
    return [
        token.id,
        token.text,
        token.model_seconds,
        token.finish_reason,
        token.stop_reason,
        token.held,
        token.pages,
        token.probability,
        None
        if logprobs is None
        else [
            logprobs.id,
            logprobs.chosen,
            logprobs.rank,
            _bytes(logprobs.top_ids, "<i8"),
            *(_bytes(values, "<f8") for values in (logprobs.top, logprobs.final) if values is not None),
        ],
        None if trace is None else list(astuple(trace)),
        token.digest,
        token.probe_scores,
    ]


def token_of(fields: Sequence[Any], sequence: int = 0) -> TokenOutput:
    """Rebuild a token output from plain values. ``sequence`` is the index of the token's sequence in its request."""
    *plain, logprobs, trace, digest, scores = fields
    row = None
    if logprobs is not None:
        number, chosen, rank, ids, *values = logprobs
        floats = (np.frombuffer(one, "<f8") for one in values)
        row = TokenLogprobs(number, chosen, rank, np.frombuffer(ids, "<i8"), *floats)
    token_trace = None
    if trace is not None:
        trace[4] = tuple(StepTrace(*step) for step in trace[4])
        token_trace = TokenTrace(*trace)
    return replace(
        TokenOutput(*plain), logprobs=row, trace=token_trace, sequence=sequence, digest=digest, probe_scores=scores
    )


def facts_fields(facts: PromptOutput) -> list[Any]:
    """Return the output of a prompt as plain values."""
    return [
        facts.cached,
        facts.queue,
        None
        if facts.logprobs is None
        else [array_fields(values) for values in vars(facts.logprobs).values() if values is not None],
        None if facts.identity is None else list(structs.astuple(facts.identity)),
    ]


def facts_of(fields: Sequence[Any]) -> PromptOutput:
    """Rebuild the output of a prompt from plain values."""
    cached, queue, logprobs, identity = fields
    return PromptOutput(
        cached,
        queue,
        None if logprobs is None else Logprobs(*map(array_of, logprobs)),
        None if identity is None else ModelIdentity(*identity),
    )


def beams_fields(beams: Beams) -> list[Any]:
    """Return the result of a beam search as plain values, without the sampler chain."""
    return [
        [list(astuple(text)) for text in beams.texts],
        [list(astuple(node)) for node in beams.tree],
        list(astuple(beams.usage)),
        list(astuple(beams.timings)),
        beams.seed,
    ]


def beams_of(fields: Sequence[Any], chain: Sequence[SamplerStep]) -> Beams:
    """Rebuild the result of a beam search from plain values and the sampler chain."""
    texts, tree, usage, timings, seed = fields
    return Beams(
        [BeamText(*text) for text in texts],
        [Node(*node) for node in tree],
        Usage(*usage),
        Timings(*timings),
        seed,
        chain,
    )


def array_fields(values: NDArray[Any]) -> list[Any]:
    """Return an array as its dtype, shape and little-endian bytes."""
    kind = values.dtype.newbyteorder("<")
    return [kind.str, list(values.shape), _bytes(values, kind)]


def array_of(fields: Sequence[Any]) -> NDArray[Any]:
    """Rebuild an array from plain values. Raises WireError for an invalid dtype, or bytes that do not fit the shape."""
    kind, shape, raw = fields
    try:
        if np.dtype(kind).hasobject:
            raise ValueError("objects")
        return np.frombuffer(raw, kind).reshape(shape)
    except (ValueError, TypeError) as error:
        raise WireError(f"an invalid array: {error}") from None


def _bytes(values: NDArray[Any], kind: Any) -> bytes:
    return np.ascontiguousarray(values, kind).tobytes()


def error_fields(error: BaseException) -> list[str]:
    """Return the class name and the message of an error."""
    name = type(error).__name__
    return [name, str(error) if isinstance(error, PellucidError) else f"{name}: {error}"]


def error_of(fields: Sequence[str]) -> PellucidError:
    """Rebuild an error from the name of its class in ``pellucid.errors``, and its message.

    The result is a KernelError if the class is unknown, or if it is FileFormatError, whose constructor takes more than
    a message.
    """
    name, message = fields
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PellucidError) and kind is not errors.FileFormatError:
        return kind(message)
    return KernelError(message)
