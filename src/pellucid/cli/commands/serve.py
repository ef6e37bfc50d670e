"""pellucid serve [MODEL]...: an HTTP server with the APIs of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.load_options import LoadOptions
from pellucid.cli.replicas import Cluster, MaxReplicas, ReplicaCount, ReplicaCpus, Replicas, StageCount

if TYPE_CHECKING:
    from pellucid.serve.guard import AccessRules


Texts: TypeAlias = list[str] | None


def _repeated(help: str, more: str = "") -> Any:
    """An option that may be given several times."""
    return typer.Option(help=f"{help}; may be repeated. {more}".strip(), show_default=False)


Draft = Annotated[
    str | None,
    typer.Option(
        help="A smaller model that proposes tokens for the first one; texts stay the same.", metavar="MODEL"
    ),
]


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="The models, by the names that requests use; as for run. By default, all on this machine.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    alias: Annotated[
        Texts,
        _repeated("NAME=FILE: the name of a model in requests", "By default the file's, without its folder."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[Any, common.count("The port to listen at.")] = 8000,
    key: Annotated[Texts, _repeated("A key that requests must have", "Also PELLUCID_KEY.")] = None,
    admin_key: Annotated[
        Texts, _repeated("A key that may look at all requests that run", "Also PELLUCID_ADMIN_KEY.")
    ] = None,
    allow_host: Annotated[Texts, _repeated("A name of this server, as in its address")] = None,
    allow_origin: Annotated[Texts, _repeated("A web page's origin that may ask")] = None,
    memory: Annotated[Any, common.number("Gigabytes that the models' files may take together.")] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Download models that are not on this machine.")
    ] = False,
    queue: Annotated[Any, common.count("How many requests may wait for each model.")] = 256,
    grace: Annotated[Any, common.number("Seconds that running requests have to end after SIGTERM.")] = 30.0,
    connections: Annotated[Any, common.count("How many connections there may be at a time.")] = 1024,
    receive: Annotated[
        Any, common.number("Seconds in which a request's headers must come, and then its body.")
    ] = 20.0,
    *,
    loading: LoadOptions,
    draft: Draft = None,
    cluster: Cluster = None,
    replicas: ReplicaCount = None,
    max_replicas: MaxReplicas = None,
    replica_cpus: ReplicaCpus = None,
    stages: StageCount = None,
) -> None:
    """Serve models over HTTP, with the APIs of OpenAI, Anthropic and Ollama.

    The first named model is loaded now, others when they are asked for.
    """
    from pellucid.serve.names import served_names
    from pellucid.serve.run import Settings, serve
    from pellucid.util.checks import real, whole

    whole("port", port, 0, 65535)
    limit = usual_memory() if memory is None else real("memory", memory, 0.0, 1e6, above=True) * 1e9
    rules, waiting = (
        access_rules(host, key, admin_key, allow_host, allow_origin),
        whole("queue", queue, 1, 1 << 20),
    )

    named = bool(models or alias)
    sources = served_names(models or ([] if alias else all_models(pull)), alias or [])
    names = list(sources)
    own = {
        name: {"draft": draft if name == names[0] else None, "cap_context": True, "pulls": pull}
        for name in names
    }

    def load(name: str) -> Any:
        llm = loading.load(sources[name], **own[name], before=lambda inputs: None)
        llm.engine.limit_queue(waiting)
        return llm

    settings = Settings(
        host,
        port,
        real("grace", grace, 0.0, 3600.0),
        first=named,
        connections=whole("connections", connections, 1, 1 << 20),
        receive=real("receive", receive, 0.0, 3600.0, above=True),
    )
    if asked := Replicas.of(cluster, replicas, max_replicas, replica_cpus, stages):
        loads = {name: (sources[name], {**asdict(loading), **own[name]}) for name in names}
        asked.serve(loads, waiting, rules, settings)
    else:
        serve(names, load, int(limit), rules, settings)


def usual_memory() -> float:
    """Bytes that the models' files may take together."""
    from pellucid.runtime.memory import machine_bytes

    return 0.75 * machine_bytes()


def access_rules(
    host: str,
    keys: list[str] | None,
    admins: list[str] | None,
    hosts: list[str] | None,
    origins: list[str] | None,
) -> AccessRules:
    """Who may ask; keys are in the environment too."""
    import os

    from pellucid.serve.guard import LOOPBACK, AccessRules

    own = [*(keys or []), *filter(None, [os.environ.get("PELLUCID_KEY")])]
    all_seeing = [*(admins or []), *filter(None, [os.environ.get("PELLUCID_ADMIN_KEY")])]
    allowed = [*LOOPBACK, *(hosts or [])] if host in LOOPBACK else list(hosts or [])
    return AccessRules(own, allowed, origins or [], all_seeing)


def all_models(pull: bool) -> list[str]:
    """The names of the models that are here; with ``pull``, of those of the catalogue too."""
    from pellucid.errors import InvalidRequest
    from pellucid.weights.catalogue import catalogue
    from pellucid.weights.store import installed

    found = [model.name for model in installed() if model.complete] + (list(catalogue()) if pull else [])
    if not found:
        raise InvalidRequest("there is no model on this machine: name one, or give --pull")
    return found


COMMAND = Command("serve", command)
