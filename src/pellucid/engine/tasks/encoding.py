"""The outputs of an encoder for texts: vectors, or scores of labels. Texts share a step if they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.engine import Engine
from pellucid.engine.job import DEFAULT_SCHEDULING, SchedulingOptions
from pellucid.engine.recorder import RequestTracer, raise_of, refuse_changed
from pellucid.engine.task import ChunkOutput
from pellucid.model.spec import ModelSpec
from pellucid.runtime.batch import STEP_SEQUENCES
from pellucid.runtime.cached_sequence import CachedSequence


class EncodingTask:
    """A task that yields the number of each text and its outputs: (1, N) if the model pools, else (tokens, N).

    The texts finish in the order of the steps. If attention is causal and the last token is the output, a text may run
    in several steps, and texts with equal beginnings, such as an instruction, share pages of the prefix cache.
    """

    def __init__(
        self, cache: CacheManager, spec: ModelSpec, texts: Sequence[EncoderInput], watching: RequestTracer | None = None
    ) -> None:
        self._cache, pooling = cache, spec.pooling
        self._shares = pooling is not None and not spec.in_one_step
        texts = [without_padding(text, spec) for text in texts]
        recorders = [None if watching is None else watching.begin(text.ids)[0] for text in texts]
        self._unfinished = dict[CachedSequence, int]()
        self._rows = dict[CachedSequence, list[NDArray[np.float32]]]()
        for number, (text, recorder) in enumerate(zip(texts, recorders)):
            if watching is not None and recorder is not None:
                recorder.tokens = partial(list, text.ids)
                watching.keep(recorder)
            first = text.first_output
            if pooling is not None:
                first = len(text.ids) - (pooling.kind == "last")
            sequence = CachedSequence(text.ids, first, in_one_step=spec.in_one_step, recorder=recorder)
            sequence.types = text.types
            self._unfinished[sequence] = number

    @property
    def done(self) -> bool:
        """True if every text has its outputs."""
        return not self._unfinished

    def begin(self, waited: float) -> None:
        """As in ``Task``."""

    def runnable(self) -> Sequence[CachedSequence]:
        """The next texts without outputs: as many as a step may have, so that planning a step takes constant time."""
        return list(islice(self._unfinished, STEP_SEQUENCES))

    def sequences(self) -> Sequence[CachedSequence]:
        """The texts without outputs."""
        return list(self._unfinished)

    def process(
        self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield a text's number and outputs when all its tokens have run, and free its pages."""
        raise_of(sequence.recorder)
        if not np.isfinite(outputs).all():
            refuse_changed(sequence.recorder, f"text {self._unfinished[sequence]}: its outputs are not finite")
        rows = self._rows.setdefault(sequence, [])
        rows.append(outputs)
        if sequence.unread_tokens:
            return
        del self._rows[sequence]
        self._cache.release(sequence.table, tokens=sequence.shared_tokens if self._shares else ())
        yield self._unfinished.pop(sequence), rows[0] if len(rows) == 1 else np.concatenate(rows)

    def close(self) -> None:
        self._cache.release(*(sequence.table for sequence in self._unfinished))


def without_padding(text: EncoderInput, spec: ModelSpec) -> EncoderInput:
    """A text without padding after its last token, if the pooling does not count padding. A text of padding stays.

    A file's tokenizer may add the padding token as the end of a text. Earlier tokens do not see it.
    """
    padding = spec.pooling.padding if spec.pooling is not None and not spec.in_one_step else None
    count = len(text.ids)
    while count > 1 and text.ids[count - 1] == padding:
        count -= 1
    if count == len(text.ids):
        return text
    return EncoderInput(text.ids[:count], text.types and text.types[:count])


def encode(
    engine: Engine,
    texts: Sequence[EncoderInput],
    watching: RequestTracer | None = None,
    scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
) -> list[NDArray[np.float32]]:
    """The outputs of each text: (1, N) if the model pools, else (tokens, N)."""
    found = [np.empty((0, engine.runner.width), np.float32)] * len(texts)
    task = EncodingTask(engine.cache, engine.runner.spec, texts, watching)
    for number, rows in engine.run(task, scheduling):
        found[number] = rows
    return found
