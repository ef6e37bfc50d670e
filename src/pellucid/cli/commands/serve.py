"""pellucid serve [MODEL]...: an HTTP server. pellucid look [MODEL]...: the server's page, in the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from msgspec.structs import replace

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.loading import Loading, ServerLoading, load, with_template
from pellucid.cli.sampling_options import Guards, VectorFolder, registered
from pellucid.cli.serving_options import (
    Cluster,
    MaxReplicas,
    ReplicaCount,
    ReplicaCpus,
    Replicas,
    ServingOptions,
    StageCount,
    Texts,
    repeated,
)
from pellucid.errors import InvalidRequest
from pellucid.util.checks import real, whole

if TYPE_CHECKING:
    from pellucid.llm import LLM
    from pellucid.weights.sources.source import DownloadProgress

# pellucid serve [MODEL]...: an HTTP server with the APIs of OpenAI, Anthropic and Ollama.


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
    cluster: Cluster = None,
    replicas: ReplicaCount = None,
    max_replicas: MaxReplicas = None,
    replica_cpus: ReplicaCpus = None,
    stages: StageCount = None,
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
    names = list(sources)
    signer = None
    if receipt_key is not None:
        from pellucid.receipts.signature import Signer

        signer = Signer(receipt_key)
    first_options = replace(
        with_template(loading, chat_template), cap_context=True, pulls=pull or bool(models or alias)
    )
    options = replace(first_options, chat_template=None, draft=None, dictionaries=None)

    def load_served(name: str) -> LLM:
        llm = load(sources.get(name, name), first_options if name == names[0] else options)
        llm.engine.limit_queue(waiting)
        llm.signer = signer
        llm.vectors = control
        return llm

    if cluster_replicas := Replicas.of(cluster, replicas, max_replicas, replica_cpus, stages):
        loads = {name: (sources[name], first_options if name == names[0] else options) for name in names}
        cluster_replicas.serve(loads, waiting, control, rules, settings, signer)
    else:
        serve(names, load_served, int(limit), rules, settings, pull=pulled if pull else None)


def pulled(name: str, progress: DownloadProgress) -> str:
    """Download a model of the catalogue for a client, and return its name. Clients cannot use paths or other sources.

    Raises:
        ModelNotFound: the model is not in the catalogue.
        SourceError: the model cannot be downloaded.
    """
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


RENAMED = {"--grace": "--shutdown-timeout", "--receive": "--read-timeout"}
SERVE = Command("serve", serve_command, renamed=RENAMED)


# pellucid look [MODEL]...: opens the page that shows the inside of a running model.

HOST, GRACE = "127.0.0.1", 1.0


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

    rules = AccessRules(hosts=LOOPBACK)
    serve(
        list(sources),
        lambda name: load(sources[name], options),
        int(usual_memory()),
        rules,
        Settings(HOST, port, GRACE, first=bool(models)),
        ready,
    )


LOOK = Command("look", look_command)
