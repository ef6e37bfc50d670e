"""The sampling options that a model's file recommends: ``generation_config.json``, or ``general.sampling.*`` in GGUF.

Recommended options replace Pellucid's defaults. The options of a request override both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from pellucid.errors import InvalidRequest, brief
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
_RENAMED = {"temp": "temperature", "penalty_last_n": "repeat_last_n", "penalty_repeat": "repetition_penalty"}
GGUF_KEYS: Mapping[str, str] = {
    f"general.sampling.{name}": _RENAMED.get(name, name)
    for name in (
        *("temp", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold", "penalty_last_n", "penalty_repeat"),
        *("mirostat", "mirostat_tau", "mirostat_eta"),
    )
}
"""The option of each key, by kind of file."""
SOURCE_KEYS: Mapping[str, str] = {
    "forced_bos_token_id": "forced_bos_token_id",
    "forced_eos_token_id": "forced_eos_token_id",
    "max_length": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "min_length": "min_new_tokens",
    "min_new_tokens": "min_new_tokens",
    "bad_words_ids": "banned",
}
"""Further keys of ``generation_config.json`` for encoder-decoders."""
LENGTHS = ("max_length", "min_length")
"""Keys that count the first token of the decoder, too."""
BEAM_OPTIONS = ("num_beams", "length_penalty", "early_stopping")


def recommended(checkpoint: Checkpoint, *, sources: bool = False) -> dict[str, Any]:
    """The options that a file recommends, by name. Warns about a value that no step accepts, and leaves it out.

    If a file recommends ``top_k`` or ``top_p`` but no ``min_p``, then ``min_p`` is off. With ``sources``, the model is
    an encoder-decoder: more keys count, and a file that does not recommend sampling recommends greedy decoding. Raises
    FileFormatError: ``generation_config.json`` is damaged.
    """
    keys, values, name = GGUF_KEYS, checkpoint.metadata, checkpoint.path.name
    if checkpoint.kind != "gguf":
        keys = {**JSON_KEYS, **(SOURCE_KEYS if sources else {})}
        values, name = _generation_config(checkpoint, sources=sources)
    options: dict[str, Any] = {}
    for key, option in keys.items():
        stored = values.get(key)
        if stored is None:
            continue
        try:
            value = stored if option == "banned" else _number(stored) - (key in LENGTHS)
            if key == "min_length" and value <= 0:
                continue
            Options.of(**{option: value})
        except InvalidRequest as error:
            warnings.warn(f"{name}: {key} = {brief(stored)} is not used: {error}", stacklevel=2)
            continue
        options[option] = value
    steps = owners()
    of_steps = {name: steps[name] for name in options if name in steps}
    if any(step.alone and options[name] for name, step in of_steps.items()):  # such a step replaces the other cuts
        cuts = {name for name, step in of_steps.items() if step.kind == "cut" and not step.alone}
        options = {name: value for name, value in options.items() if name not in cuts}
    elif options.keys() & {"top_k", "top_p"}:
        options.setdefault("min_p", 0.0)
    if values.get("do_sample", False if sources else None) is False:
        options["temperature"] = 0.0
    return options


def recommended_beams(checkpoint: Checkpoint) -> dict[str, Any]:
    """The options of beam search that the file of an encoder-decoder recommends, by name. Warns as ``recommended``."""
    if checkpoint.kind == "gguf":
        return {}
    from pellucid.sample.beams import BeamOptions

    values, file = _generation_config(checkpoint, sources=True)
    options = {name: values[name] for name in BEAM_OPTIONS if values.get(name) is not None}
    for name, value in list(options.items()):
        try:
            BeamOptions(**{name: value})
        except InvalidRequest as error:
            warnings.warn(f"{file}: {name} = {brief(value)} is not used: {error}", stacklevel=2)
            del options[name]
    return options


def _generation_config(checkpoint: Checkpoint, *, sources: bool) -> tuple[Mapping[str, Any], str]:
    """The values of ``generation_config.json``, and the name of the file.

    Older files of encoder-decoders (``sources``) have these values in ``config.json``.
    """
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if (folder / FILE).is_file():
        return read_json(folder / FILE), f"{folder.name}/{FILE}"
    values = dict(checkpoint.metadata) if sources else {}
    if values.get("force_bos_token_to_be_generated") is True and values.get("forced_bos_token_id") is None:
        values["forced_bos_token_id"] = values.get("bos_token_id")  # the older form, as in transformers
    return values, f"{folder.name}/config.json"


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
