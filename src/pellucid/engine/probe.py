"""What a request needs of a trace: probes for its sequences. ``trace/`` implements it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pellucid.errors import InvalidRequest, KernelError
from pellucid.runtime.batch import Probe
from pellucid.sample.candidates import DAMAGED


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

    @property
    def edited(self) -> str:
        """The points that the edits change, as a short text; "" without edits."""
        ...

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

    def begin(
        self,
        tokens: int,
        count: int = 1,
        parent: Any = None,
        *,
        most: int | None = None,
        first_output: int = 0,
    ) -> Sequence[SequenceWatch]:
        """Probes for ``count`` sequences that go on after the same ``tokens`` tokens, or after what the probe
        ``parent`` has recorded. They are no part of the trace until they are kept.

        A sequence reads ``most`` tokens at most (None: no more than these), and its logits are computed from position
        ``first_output`` on.

        Raises:
            InvalidRequest: what is recorded of them does not fit into the trace's budget, or an edit changes nothing
                in them.
        """
        ...

    def unused(self, count: int) -> list[str]:
        """Sentences about edits, or rows of them, that begin after the ``count`` tokens that were read."""
        ...

    def keep(self, probe: Any, /) -> None:
        """The sequence of a probe runs now, or has run: it becomes the next one of the trace."""
        ...


def raise_of(probe: Probe | None) -> None:
    """Raise what went wrong in a sequence's edits."""
    error = getattr(probe, "error", None)
    if error is not None:
        raise error


def blame_edits(probe: Probe | None, error: KernelError) -> None:
    """Raise InvalidRequest if logits are not finite in a sequence whose values are changed: its edits made them so."""
    found = str(error).removesuffix(f": {DAMAGED}")
    if found != str(error):
        refuse_changed(probe, found, error)


def refuse_changed(probe: Probe | None, found: str, error: KernelError | None = None) -> None:
    """Raise InvalidRequest if a sequence's values are changed: that is why ``found`` is so."""
    if edited := getattr(probe, "edited", ""):
        raise InvalidRequest(f"{found} because of the request's edits ({edited}): change less") from error
