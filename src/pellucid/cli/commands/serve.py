"""pellucid serve [MODEL]...: an HTTP server with the APIs of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.load_options import LoadOptions
from pellucid.cli.replicas import Cluster, MaxReplicas, ReplicaCount, ReplicaCpus, Replicas, StageCount
from pellucid.cli.serving_options import ServingOptions, Texts, repeated

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
        repeated("NAME=FILE: the name of a model in requests", "By default the file's, without its folder."),
    ] = None,
    memory: Annotated[Any, common.number("Gigabytes that the models' files may take together.")] = None,
    cache_memory: Annotated[
        Any,
        common.number(
            "Gigabytes of each model's prefix cache: keys and values of ended requests. By default as much as the "
            "weights, 0.5 at least, and a sixteenth of the memory at most."
        ),
    ] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Download models that are not on this machine.")
    ] = False,
    queue: Annotated[Any, common.count("How many requests may wait for each model.")] = 256,
    *,
    serving: ServingOptions,
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
    from pellucid.serve.run import serve
    from pellucid.util.checks import real, whole

    settings, rules = serving.settings(first=bool(models or alias)), serving.rules()
    limit = usual_memory() if memory is None else real("memory", memory, 0.0, 1e6, above=True) * 1e9
    waiting = whole("queue", queue, 1, 1 << 20)
    sources = served_names(models or ([] if alias else all_models(pull)), alias or [])
    names = list(sources)
    own = {
        name: {
            "draft": draft if name == names[0] else None,
            "cache_memory": cache_memory,
            "cap_context": True,
            "pulls": pull,
        }
        for name in names
    }

    def load(name: str) -> Any:
        llm = loading.load(sources[name], **own[name], before=lambda inputs: None)
        llm.engine.limit_queue(waiting)
        return llm

    if asked := Replicas.of(cluster, replicas, max_replicas, replica_cpus, stages):
        loads = {name: (sources[name], {**asdict(loading), **own[name]}) for name in names}
        asked.serve(loads, waiting, rules, settings)
    else:
        serve(names, load, int(limit), rules, settings)


def usual_memory() -> float:
    """Bytes that the models' files may take together."""
    from pellucid.runtime.processors import machine_bytes

    return 0.75 * machine_bytes()


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
