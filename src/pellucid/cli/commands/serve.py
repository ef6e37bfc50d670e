"""pellucid serve, look [MODEL]...: a server and its page. pellucid ps, stop: the models in a server's memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec.structs import replace

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.cli.options import Guards, Loading, ServerLoading, VectorFolder, load, registered, with_template
from pellucid.cli.serving_options import ClusterOptions, ServingOptions, Texts, repeated
from pellucid.errors import InvalidRequest, NotFound, brief, one_line, shown
from pellucid.util.checks import real, whole

if TYPE_CHECKING:
    from pellucid.llm import LLM
    from pellucid.weights.sources.source import DownloadProgress


@command("serve", renamed={"--grace": "--shutdown-timeout", "--receive": "--read-timeout"})
def serve_command(
    models: list[str] | None = common.argument(
        "MODEL",
        "Models, as in `pellucid run`; a missing model is downloaded. Requests use the same names. Default: all "
        "models on this machine.",
    ),
    alias: Texts = repeated(
        "NAME=FILE serves a file under a name; NAME renames the first model",
        "Default: the file's name, without its folder.",
    ),
    memory: Any = common.number(
        "Maximum gigabytes of all loaded models together. Default: three quarters of the memory."
    ),
    pull: bool = common.flag(
        "--pull",
        "Offer all models of the catalogue, and download models at the request of a client (Ollama's /api/pull).",
    ),
    any_model: bool = common.flag(
        "--any-model", "The first model also answers requests that name an unknown model, as in llama.cpp."
    ),
    chat_template: str | None = common.text(
        "FILE", "A chat template (Jinja) for the first model, instead of the template in its file."
    ),
    vectors: VectorFolder = None,
    guard: Guards = None,
    queue: Any = common.count("Maximum requests that wait for each model.", 256),
    receipt_key: str | None = common.text(
        "FILE", "An Ed25519 private key, which signs receipts. Default: receipts are not signed."
    ),
    *,
    serving: ServingOptions,
    loading: ServerLoading,
    cluster: ClusterOptions,
) -> None:
    """Serve models over HTTP, with the APIs of OpenAI, Anthropic and Ollama.

    The first named model is loaded at the start, other models at their first request.
    """
    from pellucid.serve.pool import served_names
    from pellucid.serve.server import serve

    settings, rules = serving.settings(first=bool(models or alias), any_model=any_model), serving.rules()
    limit = usual_memory() if memory is None else real("memory", memory, 0.0, 1e6, above=True) * 1e9
    waiting = whole("queue", queue, 1, 1 << 20)
    control = registered(vectors, guard)
    sources = served_names(models or ([] if alias else all_models(pull)), alias or [])
    names, signer = list(sources), None
    if receipt_key is not None:
        from pellucid.receipts.receipt import Signer

        signer = Signer(receipt_key)
    pulls = pull or bool(models or alias)
    first_options = replace(with_template(loading, chat_template), cap_context=True, pulls=pulls)
    options = replace(first_options, chat_template=None, draft=None, dictionaries=None)

    def load_served(name: str) -> LLM:
        llm = load(sources.get(name, name), first_options if name == names[0] else options)
        llm.engine.limit_queue(waiting)
        llm.signer = signer
        llm.vectors = control
        return llm

    if replicas := cluster.checked():
        loads = {name: (sources[name], first_options if name == names[0] else options) for name in names}
        replicas.serve(loads, waiting, control, rules, settings, signer)
    else:
        serve(names, load_served, int(limit), rules, settings, pull=pulled if pull else None)


def pulled(name: str, progress: DownloadProgress) -> str:
    """Download a model of the catalogue for a client, and return its name. Clients cannot use other sources."""
    from pellucid.weights.catalogue import find, not_found
    from pellucid.weights.store import resolve

    if (model := find(name)) is None:
        raise not_found(name)
    resolve(model.name, progress=progress)
    return model.name


def usual_memory() -> float:
    """Default limit of the models' files together, in bytes."""
    from pellucid.runtime.processors import machine_bytes

    return 0.75 * machine_bytes()


def all_models(pull: bool) -> list[str]:
    """Names of the models on this machine, and with ``pull`` of all models of the catalogue."""
    from pellucid.weights.catalogue import catalogue
    from pellucid.weights.store import installed

    names = [model.name for model in installed() if model.complete] + (list(catalogue()) if pull else [])
    if not names:
        raise InvalidRequest("there is no model on this machine: name one, or give --pull")
    return names


HOST, GRACE = "127.0.0.1", 1.0


@command("look")
def look_command(
    models: list[str] | None = common.argument(
        "MODEL", "Models, as in `pellucid run`. Default: all models on this machine."
    ),
    port: Any = common.count("Port to listen on; 0: any free port.", 0),
    browser: bool = typer.Option(True, help="Open the page in a browser."),
    *,
    loading: Loading,
) -> None:
    """Open a page that shows the inside of a running model: tokens, attention, neurons, layers, sampling.

    Starts a server that only this machine can reach. Ctrl-C ends the server. `pellucid serve` has the same page.
    """
    import webbrowser

    from pellucid.serve.guard import LOOPBACK, AccessRules
    from pellucid.serve.pool import served_names
    from pellucid.serve.server import Settings, serve

    whole("port", port, 0, 65535)
    sources = served_names(models or all_models(pull=False))

    # A model with a shorter context than --context keeps its own context.
    options = replace(loading, cap_context=True)

    def ready(url: str) -> None:
        if browser and not webbrowser.open(url):
            typer.echo(f"no browser can be opened here: open {url}", err=True)

    settings, rules = Settings(HOST, port, GRACE, first=bool(models)), AccessRules(hosts=LOOPBACK)
    serve(list(sources), lambda name: load(sources[name], options), int(usual_memory()), rules, settings, ready)


# Requests of commands to a running server, through Ollama's API.

Url = Annotated[str, common.text("URL", "Address of the server.", ...)]
Key = Annotated[
    str | None,
    common.text("KEY", "API key of the server; stop needs an admin key if it has one. Default: PELLUCID_KEY.", ...),
]
DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT = 60.0  # seconds


def ask(url: str, key: str | None, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON document at a path of a server: GET, or POST with a ``body``."""
    import httpx

    from pellucid.measure.server_load import key_headers

    key, url = key or os.environ.get("PELLUCID_KEY"), url.rstrip("/")
    try:
        with httpx.Client(headers=key_headers(key), timeout=TIMEOUT) as http:
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
    """The models in the memory of a server, in Ollama's form (``GET /api/ps``)."""
    document = ask(url, key, "/api/ps")
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, list) or not all(isinstance(one, dict) and "name" in one for one in models):
        raise InvalidRequest(f"{shown(url)} has no server with Ollama's API: name another with --url")
    return models


@command("ps")
def ps_command(url: Url = DEFAULT_URL, key: Key = None, json: common.Json = False) -> None:
    """Show the models that a running server has in memory."""
    models = loaded_models(url, key)
    rows = []
    for model in models:
        parameters = str((model.get("details") or {}).get("parameter_size", ""))
        size, context = model.get("size", 0) / 1e6, model.get("context_length", 0)
        rows.append((one_line(str(model["name"])), f"{size:.0f}", parameters, f"{context:,}"))
    common.print_table("name", ">MB", ">parameters", ">context", rows=rows, json=json and models)


@command("stop")
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
