"""The control vectors and probes of a folder, which requests name: ``steer={"calm": 1.5}``, ``probes=["toxicity"]``.

    llm.vectors = RegisteredVectors.open("vectors")     # calm.gguf, toxicity.safetensors, ...
    llm.generate(prompt, steer={"calm": 1.5, "french": -0.5}, probes=["toxicity"])

A name is the name of a file without its ending.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief, reason
from pellucid.plan.points import Point
from pellucid.trace.control_vector import MAX_SCALE, ControlVector, total
from pellucid.trace.edits import Edit, listed
from pellucid.trace.linear_probe import ENDINGS, LinearProbe, listed_probes, read_vectors
from pellucid.util.checks import real

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
MAX_FILES = 10_000
MAX_STEERED = 16
"""Maximum number of control vectors of a request."""


class Control(NamedTuple):
    edits: list[Edit]
    probes: list[LinearProbe]


@dataclass(frozen=True)
class RegisteredVectors:
    """Control vectors and probes by name. ``guards`` are limits of probes that end the texts of all requests."""

    vectors: Mapping[str, ControlVector] = field(default_factory=dict)
    probes: Mapping[str, LinearProbe] = field(default_factory=dict)
    guards: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path) -> RegisteredVectors:
        """Read all files of a folder that end with ``.gguf`` or ``.safetensors``.

        Raises:
            FileFormatError: a file is damaged.
            InvalidRequest: the folder cannot be read or has no such file, two files have one name, or a name has other
                characters than letters, digits, ``.``, ``_`` and ``-``.
        """
        folder = Path(folder)
        try:
            files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS)
        except OSError as error:
            raise InvalidRequest(f"vectors={brief(str(folder))}: cannot be read: {reason(error)}") from error
        if not 1 <= len(files) <= MAX_FILES:
            raise InvalidRequest(
                f"vectors={brief(str(folder))}: has {len(files):,} files that end with {' or '.join(ENDINGS)}; it must "
                f"have 1 to {MAX_FILES:,}"
            )
        vectors, probes = dict[str, ControlVector](), dict[str, LinearProbe]()
        for path in files:
            if not NAME.fullmatch(path.stem):
                raise InvalidRequest(
                    f"{brief(path.name)}: a name has letters, digits, '.', '_' and '-': rename the file"
                )
            if path.stem in vectors.keys() | probes.keys():
                raise InvalidRequest(f"{brief(path.name)}: two files are called {path.stem}: rename one of them")
            if path.suffix == ".gguf" or "general.architecture" in read_vectors(path).metadata:
                vectors[path.stem] = ControlVector.open(path)
            else:
                probes[path.stem] = LinearProbe.open(path)
        return cls(vectors, probes)

    def guarded(self, limits: Mapping[str, float]) -> RegisteredVectors:
        """These vectors and probes, with limits of probes for all requests.

        Raises:
            InvalidRequest: no probe has the name, or a limit is out of range.
        """
        for name, above in limits.items():
            _registered("guard", name, self.probes, "probes").stopping(above)
        return replace(self, guards=dict(limits))

    @property
    def digest(self) -> str:
        """A hash of all names and values; "" if nothing is registered."""
        if not self.vectors and not self.probes:
            return ""
        found = hashlib.sha256()
        for name, vector in sorted(self.vectors.items()):
            found.update(repr((name, list(vector.directions))).encode())
            found.update(b"".join(values.tobytes() for values in vector.directions.values()))
        for name, probe in sorted(self.probes.items()):
            found.update(repr((name, probe.point, probe.bias, probe.sigmoid)).encode() + probe.weights.tobytes())
        found.update(repr(sorted(self.guards.items())).encode() if self.guards else b"")
        return found.hexdigest()

    def taken_from(self, options: dict[str, Any], points: Callable[[], Mapping[str, Point]]) -> Control:
        """The edits and probes of a request. Removes ``edits``, ``steer`` and ``probes`` from its options.

        Raises:
            InvalidRequest: a name is unknown (the message lists the registered names), a vector does not fit the
                model, or a number is out of range.
        """
        edits, steer, probes = (options.pop(name, None) for name in ("edits", "steer", "probes"))
        own = [] if edits is None else listed(edits)
        if steer:
            own = [*own, *self._steering(steer, points()).edits()]
        named = [] if probes is None else listed_probes(self._named(probes))
        return Control(own, self._guarded(named))

    def _guarded(self, probes: Sequence[LinearProbe]) -> list[LinearProbe]:
        """The probes of a request and the guards. Of two limits of a probe the lower applies."""
        found = {probe.name: probe for probe in probes}
        for name, above in self.guards.items():
            own = found.get(name, self.probes[name])
            found[name] = own.stopping(above if own.stop_above is None else min(above, own.stop_above))
        return list(found.values())

    def _steering(self, steer: Any, points: Mapping[str, Point]) -> ControlVector:
        if not isinstance(steer, Mapping):
            raise InvalidRequest(f"steer={brief(steer)}: must be an object of names and scales")
        if len(steer) > MAX_STEERED:
            raise InvalidRequest(f"steer has {len(steer):,} vectors; the limit is {MAX_STEERED}")
        parts = list[tuple[float, ControlVector]]()
        for name, scale in steer.items():
            vector = _registered("steer", name, self.vectors, "control vectors")
            try:
                vector.check_fits(points)
            except InvalidRequest as error:
                raise InvalidRequest(f"steer.{name}: {error}") from None
            parts.append((real(f"steer.{name}", scale, -MAX_SCALE, MAX_SCALE), vector))
        return total(parts)

    def _named(self, probes: Any) -> Any:
        if isinstance(probes, Mapping):
            return [self._limited(name, limits) for name, limits in probes.items()]
        if not isinstance(probes, (list, tuple)):
            return probes
        return [
            _registered("probes", probe, self.probes, "probes") if isinstance(probe, str) else probe for probe in probes
        ]

    def _limited(self, name: Any, limits: Any) -> LinearProbe:
        probe: LinearProbe = _registered("probes", name, self.probes, "probes")
        limits = {} if limits is None else limits
        if not isinstance(limits, Mapping) or not limits.keys() <= {"stop_above"}:
            raise InvalidRequest(f"probes.{name}={brief(limits)}: must be an object with stop_above, or empty")
        above = limits.get("stop_above")
        return probe if above is None else probe.stopping(above)


NO_VECTORS = RegisteredVectors()


def _registered(option: str, name: Any, known: Mapping[str, Any], kind: str) -> Any:
    found = known.get(name) if isinstance(name, str) else None
    if found is None:
        some = ", ".join(list(known)[:20]) + (f" and {len(known) - 20:,} more" if len(known) > 20 else "")
        has = f"the registered {kind} are {some}" if known else f"no {kind} are registered (--vectors FOLDER)"
        raise InvalidRequest(f"{option}={brief(name)}: {has}")
    return found
