"""The sampling options that a model's file recommends: ``generation_config.json``, or ``general.sampling.*`` in GGUF.

Recommended options replace Pellucid's defaults. The options of a request override both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.options import Options
from pellucid.sample.step import owners
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json

FILE = "generation_config.json"
JSON_KEYS: Mapping[str, str] = {
    name: name
    for name in (
        *("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("repetition_penalty", "no_repeat_ngram_size"),
    )
}
GGUF_KEYS: Mapping[str, str] = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.xtc_probability": "xtc_probability",
    "general.sampling.xtc_threshold": "xtc_threshold",
    "general.sampling.penalty_last_n": "repeat_last_n",
    "general.sampling.penalty_repeat": "repetition_penalty",
    "general.sampling.mirostat": "mirostat",
    "general.sampling.mirostat_tau": "mirostat_tau",
    "general.sampling.mirostat_eta": "mirostat_eta",
}
"""The option of each key, by kind of file."""


def recommended(checkpoint: Checkpoint) -> dict[str, Any]:
    """The options that a file recommends, by name. Warns about a value that no step accepts, and leaves it out.

    If a file recommends ``top_k`` or ``top_p`` but no ``min_p``, then ``min_p`` is off.

    Raises:
        FileFormatError: ``generation_config.json`` is damaged.
    """
    keys, values, name = GGUF_KEYS, checkpoint.metadata, checkpoint.path.name
    if checkpoint.kind != "gguf":
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        keys, values, name = JSON_KEYS, {}, f"{folder.name}/{FILE}"
        if (folder / FILE).is_file():
            values = read_json(folder / FILE)
    options: dict[str, Any] = {}
    for key, option in keys.items():
        value = values.get(key)
        if value is None:
            continue
        try:
            number = _number(value)
            Options.of(**{option: number})
        except InvalidRequest as error:
            warnings.warn(f"{name}: {key} = {brief(value)} is not used: {error}", stacklevel=2)
            continue
        options[option] = number
    steps = owners()
    if any(steps[name].alone and options[name] for name in options):  # such a step replaces the other cuts
        options = {
            name: value for name, value in options.items() if steps[name].alone or steps[name].kind != "cut"
        }
    elif options.keys() & {"top_k", "top_p"}:
        options.setdefault("min_p", 0.0)
    if values.get("do_sample") is False:
        options["temperature"] = 0.0
    return options


def with_recommended(asked: Mapping[str, Any], recommendation: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request, completed with the options that the model's file recommends.

    If the request sets the whole chain (``samplers``), recommended options are ignored. Mirostat replaces all other
    steps of kind "cut". So if the request uses Mirostat, recommended options of the other cuts are ignored. If the
    request uses another cut, recommended options of Mirostat are ignored.
    """
    steps = owners()
    if asked.get("samplers") is not None:
        return dict(asked)
    cuts = [name for name in asked if name in steps and steps[name].kind == "cut" and asked[name]]
    alone, others = (any(steps[name].alone is kind for name in cuts) for kind in (True, False))

    def fits(name: str) -> bool:
        return name not in steps or steps[name].kind != "cut" or not (others if steps[name].alone else alone)

    return {**{name: value for name, value in recommendation.items() if fits(name)}, **asked}


def _number(value: Any) -> int | float:
    """A value as a Python number. A float32 of GGUF becomes the shortest decimal that rounds to it, such as 0.7."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequest("it must be a number")
    return float(f"{value:.7g}") if isinstance(value, float) and math.isfinite(value) else value
