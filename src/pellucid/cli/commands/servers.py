"""pellucid ps, stop: the models in the memory of a running server. The commands use Ollama's API."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.errors import InvalidRequest, NotFound
from pellucid.errors.messages import brief, one_line

# Requests of commands to a running server, through Ollama's API.

Url = Annotated[str, common.text("URL", "Address of the server.", ...)]
Key = Annotated[
    str | None,
    common.text("KEY", "API key of the server; stop needs an admin key if it has one. Default: PELLUCID_KEY.", ...),
]
DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT = 60.0  # seconds


def ask(url: str, key: str | None, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON document at a path of a server: GET, or POST with a ``body``.

    Raises:
        InvalidRequest: no server answers at ``url``, or it answers with an error.
    """
    import httpx

    from pellucid.errors.messages import shown
    from pellucid.measure.server_load import key_headers

    key, url = key or os.environ.get("PELLUCID_KEY"), url.rstrip("/")
    headers = key_headers(key)
    try:
        with httpx.Client(headers=headers, timeout=TIMEOUT) as http:
            answer = http.get(url + path) if body is None else http.post(url + path, json=body)
        document = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        problem = f"{type(error).__name__}: {shown(str(error))}"
        raise InvalidRequest(
            f"{shown(url)} has no server ({problem}): start one (pellucid serve), or name another with --url"
        ) from error
    if answer.is_error:
        said = document.get("error") if isinstance(document, dict) else None
        raise InvalidRequest(f"{shown(url)}: {said or answer.status_code}")
    return document


def loaded_models(url: str, key: str | None) -> list[dict[str, Any]]:
    """The models in the memory of a server, in Ollama's form (``GET /api/ps``). Raises as ``ask``."""
    from pellucid.errors.messages import shown

    document = ask(url, key, "/api/ps")
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, list) or not all(isinstance(one, dict) and "name" in one for one in models):
        raise InvalidRequest(f"{shown(url)} has no server with Ollama's API: name another with --url")
    return models


# pellucid ps: the models in the memory of a running server.


def ps_command(url: Url = DEFAULT_URL, key: Key = None, json: common.Json = False) -> None:
    """Show the models that a running server has in memory."""
    models = loaded_models(url, key)
    if json:
        common.print_json(models)
        return
    shown = common.table("name", "MB", "parameters", "context", right=("MB", "parameters", "context"))
    for model in models:
        details = model.get("details") or {}
        size, context = model.get("size", 0) / 1e6, model.get("context_length", 0)
        shown.add_row(
            one_line(str(model["name"])), f"{size:.0f}", str(details.get("parameter_size", "")), f"{context:,}"
        )
    common.show(shown)


PS = Command("ps", ps_command)


# pellucid stop MODEL...: a running server removes models from its memory.


def stop_command(
    models: list[str] = common.argument("MODEL", "Names that `pellucid ps` shows.", ...),
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Remove models from the memory of a running server, after their requests. The next request loads them again.

    Ctrl-C in its terminal ends the server itself.
    """
    loaded = [str(one["name"]) for one in loaded_models(url, key)]
    names = dict.fromkeys(name if name in loaded else name.removesuffix(":latest") for name in models)
    for name in names:
        if name not in loaded:
            raise NotFound(f"{brief(name)} is not loaded; loaded: {', '.join(loaded) or 'none'}")
    for name in names:
        ask(url, key, "/api/generate", {"model": name, "keep_alive": 0})
        print(f"stopped {name}")


STOP = Command("stop", stop_command)
