"""What a request needs of a trace: probes for its sequences. ``trace/`` implements it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pellucid.runtime.batch import Probe


class SequenceWatch(Probe, Protocol):
    """The probe of one sequence.

    ``tokens`` returns the tokens that the sequence has read. ``error`` is what went wrong in an edit; the request fails
    with it. ``outputs`` is set to what collects the tokens that the sequence generates.
    """

    @property
    def closed(self) -> bool:
        """Whether nobody reads what it records any more, so that another may take its place."""
        ...

    outputs: Any
    tokens: Callable[[], Sequence[int]]
    error: BaseException | None

    def follow(self, other: Any) -> None:
        """The sequence goes on after the tokens that ``other``, a probe of the same request, has recorded."""
        ...


class Watching(Protocol):
    """What is watched and changed in the sequences of a request.

    ``first_output`` is the first position whose logits are recorded, or what leads to them (None: of none).
    ``watches_chain``: what the sampler's chain does for each token is recorded.
    """

    @property
    def watches_chain(self) -> bool: ...

    @property
    def first_output(self) -> int | None: ...

    def begin(self, tokens: int, count: int = 1, parent: Any = None) -> Sequence[SequenceWatch]:
        """Probes for ``count`` sequences that go on after the same ``tokens`` tokens, or after what the probe
        ``parent`` has recorded. They are no part of the trace until they are kept.

        Raises:
            InvalidRequest: what is recorded of them does not fit into the trace's budget.
        """
        ...

    def keep(self, probe: Any, /) -> None:
        """The sequence of a probe runs now, or has run: it becomes the next one of the trace."""
        ...


def raise_of(probe: Probe | None) -> None:
    """Raise what went wrong in a sequence's edits."""
    error = getattr(probe, "error", None)
    if error is not None:
        raise error
