"""Names of models in requests. Short names stay unchanged. Files and folders are named without their path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.weights.catalogue import find
from pellucid.weights.gguf import SPLIT_NAME
from pellucid.weights.sources.source import source_of

ENDINGS = (".gguf", ".safetensors")


def served_names(models: Sequence[str], aliases: Sequence[str] = ()) -> dict[str, str]:
    """Map names in requests to models: first ``models`` in their order, then additional models of ``aliases``.

    An alias is "NAME=MODEL", or "NAME" for the first of ``models``. Without an alias, a file is named by its stem and
    a folder by its name, without the path.

    Raises:
        InvalidRequest: an alias is malformed, two models would have one name, or a file does not exist.
    """
    given = dict[str, str]()
    for alias in aliases:
        name, equals, model = alias.partition("=")
        model = model or ("" if equals or not models else models[0])
        if not name.strip() or not model:
            raise InvalidRequest(f"--alias {brief(alias)}: must be NAME=FILE, such as chat=models/some.gguf")
        if given.setdefault(model, name) != name:
            raise InvalidRequest(
                f"--alias: {brief(model)} is named {given[model]} and {name}: a model has one name"
            )
    served = dict[str, str]()
    for model in dict.fromkeys([*models, *given]):
        if not model:
            raise InvalidRequest("MODEL is empty: give the path of a file, or the name of a model")
        usual = _usual_name(model)
        name = given.get(model, usual)
        if name in served:
            raise InvalidRequest(
                f"{brief(served[name])} and {brief(model)} would both be called {brief(name)}: "
                f"name one of them, --alias NAME={brief(model)[1:-1]}"
            )
        served[name] = model
    return served


def _usual_name(model: str) -> str:
    if find(model) is not None:
        return model
    path = Path(model)
    if path.is_dir():
        return path.resolve().name or model
    if not os.path.lexists(path) and model.endswith(ENDINGS) and source_of(model) is None:
        # Raised when the server starts, because an error during a request would show the path to a client.
        raise InvalidRequest(
            f"there is no file {brief(model)}: give the path of a file, or the name of a model"
        )
    if os.path.lexists(path):
        split = SPLIT_NAME.fullmatch(path.name)
        return split["stem"] if split else path.stem
    return model
