"""The sequences that continue one prompt: they share its pages in the cache and run in the same steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.prefill import Prefill
from pellucid.engine.sequence import TextSequence, TokenOutput
from pellucid.pipeline import ChunkOutput
from pellucid.runtime.batch import Chunk


class GenerationTask:
    """A task that reads a prompt, then continues it with several sequences. Yields (sequence number, token output).

    ``begin`` makes the sequences at the first step, when their time limits start. The first sequence continues in the
    prompt's own block table, which is left to the prefix cache; the others continue in forks of it.
    """

    def __init__(
        self, runner: ModelRunner, prefill: Prefill, begin: Callable[[], list[TextSequence]]
    ) -> None:
        self.prefill, self._runner, self._begin = prefill, runner, begin
        self._sequences: list[TextSequence] = []
        self._prefilled = False

    @property
    def done(self) -> bool:
        """Whether every sequence has ended."""
        return bool(self._sequences) and all(one.done for one in self._sequences)

    def pending(self) -> list[Chunk]:
        """The next tokens of the prompt, then those of each running sequence."""
        if not self._sequences:
            self._sequences = self._begin()
        if not self._prefilled:
            return self.prefill.pending()
        return [sequence.pending() for _, sequence in self._running()]

    def take(self, outputs: list[ChunkOutput], seconds: float) -> Iterator[tuple[int, TokenOutput]]:
        """For each sequence, yield the forced tokens that ran in the step, then the token that follows them."""
        if not self._prefilled:
            logits = self.prefill.take(outputs, seconds)
            if logits is None:
                return
            outputs, seconds = self._fork(logits), self.prefill.seconds
        running = self._running()
        for (number, sequence), rows in zip(running, outputs):
            took = seconds
            for row in rows:
                output, took = sequence.take(row, took), 0.0
                yield number, output
                if sequence.done:
                    break
        self._runner.release(*(sequence.table for number, sequence in running if sequence.done and number))

    def _running(self) -> list[tuple[int, TextSequence]]:
        """The sequences that have not ended, with their numbers."""
        return [(number, one) for number, one in enumerate(self._sequences) if not one.done]

    def _fork(self, logits: ChunkOutput) -> list[ChunkOutput]:
        """Give each sequence its block table and the logits after the prompt."""
        self._prefilled, table = True, self.prefill.table
        self._sequences[0].table = table
        for sequence in self._sequences[1:]:
            sequence.table = self._runner.fork(table)
        return [logits] * len(self._sequences)

    def close(self, tokens: Sequence[int]) -> None:
        """Free the pages of all sequences but the first, whose block table is left to the prefix cache.

        ``tokens`` are those of the prompt and of the first sequence.
        """
        self._runner.release(*(sequence.table for sequence in self._sequences[1:]))
        self.prefill.close(tokens)
