"""The machines of a capacity plan: listed in a file, or this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pellucid.errors import InvalidRequest, brief, reason
from pellucid.measure.cost import Rates
from pellucid.measure.roofs import Roofs, machine_rates
from pellucid.runtime.processors import machine_bytes, processors
from pellucid.util.checks import real, whole

READ = 1 << 30  # bytes of the buffer that is read to measure the read rate
LATENCY, BANDWIDTH = 50e-6, 1.25e9  # default network of 10 Gbit/s: seconds of a hop, bytes per second
MAX_MACHINES, MAX_CORES = 1_000_000, 4096  # maximum number of machines of a kind, and of cores of a machine
MAX_KINDS, MAX_FILE_BYTES = 32, 1 << 20  # maximum number of kinds of machines in a file, and of bytes of the file
MIN_RATE = 1e-3  # minimum rate in GB/s and in GMAC/s
FILE_FORMAT = (
    '{"machines": [{"name": "a", "count": 4, "memory_gb": 64, "cores": 16, "read_gb_per_s": 80, '
    '"multiply_gmac_per_s": 3000}], "link": {"latency_us": 50, "gbit_per_s": 10}}'
)


@dataclass(frozen=True)
class Machine:
    """``count`` equal machines: ``memory`` in bytes, ``cores`` that run steps, and the ``rates`` of all cores together.

    ``source`` is the origin of the rates: "measured", "given", or "by cores" (the rates of this machine, scaled by the
    number of cores).
    """

    name: str
    count: int
    memory: int
    cores: int
    rates: Rates
    source: str

    @property
    def speed(self) -> str:
        return f"{self.rates.read / 1e9:.1f} GB/s, {self.rates.multiply / 1e9:,.0f} int8 GMAC/s ({self.source})"


@dataclass(frozen=True)
class Link:
    """The network between machines: ``seconds`` of a message, and bytes per second."""

    seconds: float = LATENCY
    bytes_per_second: float = BANDWIDTH


@dataclass(frozen=True)
class Machines:
    kinds: tuple[Machine, ...]
    link: Link = Link()


def this_machine(threads: int | None = None) -> Machine:
    cores = processors().threads if threads is None else whole("threads", threads, 1, MAX_CORES)
    roofs = Roofs(cores, READ)
    try:
        rates = machine_rates(roofs, READ)
    finally:
        roofs.close()
    return Machine("this machine", 1, machine_bytes(), cores, rates, "measured")


def read_machines(path: Path, here: Callable[[], Machine]) -> Machines:
    """Read machines from a JSON file. Omitted rates are the rates of ``here``, scaled by the number of cores.

    ``here`` is called only if a machine omits its rates. Raises InvalidRequest if the file cannot be read, or a field
    is wrong; the message names the field.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path}: cannot be read: {reason(error)}") from error
    if len(text) > MAX_FILE_BYTES:
        raise InvalidRequest(
            f"{path}: has more than {MAX_FILE_BYTES:,} bytes, the limit of a list of machines: shorten the file"
        )
    try:
        document = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path}: is not JSON ({reason(error)}); the form of the file is {FILE_FORMAT}") from error
    if not isinstance(document, dict) or not isinstance(document.get("machines"), list) or not document["machines"]:
        raise InvalidRequest(f"{path}: has no list of machines; the form of the file is {FILE_FORMAT}")
    if len(document["machines"]) > MAX_KINDS:
        raise InvalidRequest(
            f"{path}: lists {len(document['machines']):,} kinds of machines; the limit is {MAX_KINDS}: list equal "
            "machines once, with a count"
        )
    kinds = tuple(_machine(f"machines[{at}]", entry, here) for at, entry in enumerate(document.pop("machines")))
    if len({kind.name for kind in kinds}) < len(kinds):
        raise InvalidRequest(f"{path}: two machines have the same name: name them differently, or give a count")
    link = _link(document.pop("link", {}))
    _nothing_else("the file", document)
    return Machines(kinds, link)


def _machine(where: str, entry: Any, here: Callable[[], Machine]) -> Machine:
    if not isinstance(entry, dict):
        raise InvalidRequest(f"{where}={brief(entry)}: must be an object; the form of the file is {FILE_FORMAT}")
    fields = dict(entry)
    name = fields.pop("name", where)
    if not isinstance(name, str) or not 0 < len(name) <= 100:
        raise InvalidRequest(f"{where}.name={brief(name)}: must be a text of 1 to 100 characters")
    cores = whole(f"{where}.cores", _needed(where, fields, "cores"), 1, MAX_CORES)
    memory = real(f"{where}.memory_gb", _needed(where, fields, "memory_gb"), 0.0, 1e6, above=True)
    count = whole(f"{where}.count", fields.pop("count", 1), 1, MAX_MACHINES)
    if "read_gb_per_s" in fields or "multiply_gmac_per_s" in fields:
        source, stated = "given", list[float]()
        for field, most in (("read_gb_per_s", 1e5), ("multiply_gmac_per_s", 1e8)):
            stated.append(real(f"{where}.{field}", _needed(where, fields, field), MIN_RATE, most))
        rates = Rates(1e9 * stated[0], 1e9 * stated[1])
    else:
        source, own = "by cores", here()
        rates = Rates(own.rates.read * cores / own.cores, own.rates.multiply * cores / own.cores)
    _nothing_else(where, fields)
    return Machine(name, count, int(1e9 * memory), cores, rates, source)


def _link(entry: Any) -> Link:
    if not isinstance(entry, dict):
        raise InvalidRequest(f"link={brief(entry)}: must be an object; the form of the file is {FILE_FORMAT}")
    fields, link = dict(entry), Link()
    if "latency_us" in fields:
        link = replace(link, seconds=real("link.latency_us", fields.pop("latency_us"), 0.0, 1e9) / 1e6)
    if "gbit_per_s" in fields:
        rate = real("link.gbit_per_s", fields.pop("gbit_per_s"), 0.0, 1e6, above=True)
        link = replace(link, bytes_per_second=1e9 / 8 * rate)
    _nothing_else("link", fields)
    return link


def _needed(where: str, fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise InvalidRequest(f"{where}.{name} is missing; the form of the file is {FILE_FORMAT}")
    return fields.pop(name)


def _nothing_else(where: str, fields: Mapping[str, Any]) -> None:
    if fields:
        raise InvalidRequest(
            f"{where} has {brief(min(fields))}, which is unknown; the form of the file is {FILE_FORMAT}"
        )
