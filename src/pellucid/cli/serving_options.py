"""Options of a server (address, access rules, limits), and of commands that run models on a cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

import typer

from pellucid.cli import common
from pellucid.cli.command import OptionGroup
from pellucid.errors import InvalidRequest
from pellucid.util.checks import real, whole

if TYPE_CHECKING:
    from pellucid.base_llm import BaseLLM
    from pellucid.cluster.ray_actors import ReplicaSettings
    from pellucid.cluster.secret import ClusterSecret
    from pellucid.load_options import LoadOptions
    from pellucid.receipts.receipt import Signer
    from pellucid.serve.guard import AccessRules
    from pellucid.serve.server import Settings
    from pellucid.trace.control_vector import RegisteredVectors
    from pellucid.trace.dataset.activation_dataset import RecordedDataset
    from pellucid.trace.dataset.index import DatasetOptions
    from pellucid.util.text_file import TextFile

# Options of a server: its address, its access rules, and the limits of connections and times.

Texts: TypeAlias = list[str] | None


def repeated(help: str, more: str = "", default: Any = None) -> Any:
    """An option that may be given several times."""
    return typer.Option(default, help=f"{help}; may be repeated. {more}".strip())


@dataclass(frozen=True)
class ServingOptions:
    """Options of a server. The environment variables PELLUCID_KEY and PELLUCID_ADMIN_KEY may hold further keys."""

    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses of this machine.")] = (
        "127.0.0.1"
    )
    port: Annotated[Any, common.count("Port to listen on; 0: any free port.", ...)] = 8000
    key: Annotated[Texts, repeated("API key that requests need", "Also PELLUCID_KEY.", default=...)] = None
    admin_key: Annotated[
        Texts, repeated("Key that may see the running requests of all clients", "Also PELLUCID_ADMIN_KEY.", default=...)
    ] = None
    allow_host: Annotated[Texts, repeated("Host name that requests may use for this server", default=...)] = None
    allow_origin: Annotated[Texts, repeated("Origin of web pages that may send requests", default=...)] = None
    shutdown_timeout: Annotated[Any, common.number("Seconds that running requests may take after SIGTERM.", ...)] = 30.0
    connections: Annotated[Any, common.count("Maximum open connections.", ...)] = 1024
    read_timeout: Annotated[
        Any,
        common.number(
            "Maximum seconds until the headers of a request have arrived, and then until its body has arrived.", ...
        ),
    ] = 20.0

    def rules(self) -> AccessRules:
        """Access rules: keys, hosts, origins."""
        from pellucid.serve.guard import LOOPBACK, AccessRules

        own = [*(self.key or []), *filter(None, [common.secret("PELLUCID_KEY")])]
        all_seeing = [*(self.admin_key or []), *filter(None, [common.secret("PELLUCID_ADMIN_KEY")])]
        named = self.allow_host or []
        allowed = [*LOOPBACK, *named] if self.host in LOOPBACK else named
        return AccessRules(own, allowed, self.allow_origin or [], all_seeing)

    def settings(self, *, first: bool, any_model: bool) -> Settings:
        """Settings of the server. ``first``: load the first model at the start.

        ``any_model``: the first model also answers requests with an unknown model name.
        """
        from pellucid.serve.server import Settings

        return Settings(
            self.host,
            whole("port", self.port, 0, 65535),
            real("shutdown_timeout", self.shutdown_timeout, 0.0, 3600.0),
            first=first,
            any_model=any_model,
            connections=whole("connections", self.connections, 1, 1 << 20),
            read_timeout=real("read_timeout", self.read_timeout, 0.0, 3600.0, above=True),
        )


MAX_REPLICAS, MAX_CPUS, MAX_STAGES = 10_000, 1024, 1000
SECRET = "PELLUCID_CLUSTER_SECRET"


@dataclass(frozen=True)
class Replicas:
    """Options of a cluster: its ``address``, and ``minimum`` to ``maximum`` replicas of each model.

    A replica runs on ``stages`` machines with ``cpus`` cores each.
    """

    address: str
    minimum: int
    maximum: int
    cpus: int
    stages: int

    def serve(
        self,
        models: Mapping[str, tuple[str, LoadOptions]],
        queue: int,
        vectors: RegisteredVectors,
        rules: AccessRules,
        settings: Settings,
        signer: Signer | None = None,
    ) -> None:
        """Serve models on the cluster. ``models`` maps names to the source of a model and its options.

        ``signer`` signs receipts, in this process.
        """
        _outlive_hangups()
        with _installed():
            from pellucid.cluster.ingress import serve_cluster
        replicas = {name: self._settings(source, options) for name, (source, options) in models.items()}
        serve_cluster(replicas, self.address, _secret(), queue, rules, settings, signer, vectors)

    @contextmanager
    def model(self, source: str, options: LoadOptions) -> Iterator[BaseLLM[Any]]:
        """A model on the cluster, for a command without a server.

        Raises: as ``serve``.
        """
        with _installed():
            from pellucid.cluster.ingress import model_on_cluster
        with model_on_cluster(self._settings(source, options), self.address, _secret()) as model:
            yield model

    def record(
        self,
        source: str,
        options: LoadOptions,
        corpus: TextFile,
        points: Sequence[str],
        out: Path,
        dataset: DatasetOptions,
        progress: Callable[[int, int], object],
    ) -> RecordedDataset:
        """Record an activation dataset on the cluster, in as many parts as there are replicas.

        Raises: as ``serve``, and as ``LLM.record_dataset``.
        """
        with _installed():
            from pellucid.cluster.dataset_parts import DatasetJob, record_on_cluster
        path, field = corpus.path.absolute(), corpus.asked_field
        job = DatasetJob(source, options, path, field, tuple(points), out.absolute(), dataset, self.minimum, self.cpus)
        return record_on_cluster(job, self.address, progress)

    def _settings(self, source: str, options: LoadOptions) -> ReplicaSettings:
        from pellucid.cluster.ray_actors import ReplicaSettings

        if options.draft is not None and self.stages > 1:
            raise InvalidRequest(
                f"--stages {self.stages}: a model in stages cannot have a draft model: remove --draft or --stages"
            )
        return ReplicaSettings(source, options, self.cpus, self.minimum, self.maximum, self.stages)


@dataclass(frozen=True)
class ClusterOptions:
    """Options of commands that can run models on a cluster. `FixedCluster` has no ``max_replicas``."""

    cluster: Annotated[
        str | None,
        common.text(
            "ADDRESS",
            "Run the models on the Ray cluster at this address; auto: the cluster that this machine belongs to. Needs "
            "pip install 'pellucid[cluster]'.",
            ...,
        ),
    ] = None
    replicas: Annotated[Any, common.count("Replicas of each model, with --cluster. Default: 1.", ...)] = None
    max_replicas: Annotated[
        Any, common.count("Maximum replicas of each model under load, with --cluster. Default: --replicas.", ...)
    ] = None
    replica_cpus: Annotated[
        Any, common.count("Cores of each replica, with --cluster. Default: the cores of this machine.", ...)
    ] = None
    stages: Annotated[
        Any,
        common.count(
            "Machines of each replica, with --cluster. Each machine runs a part of the model's blocks. Default: 1.", ...
        ),
    ] = None

    def checked(self) -> Replicas | None:
        """The replicas; None if no cluster is requested."""
        from pellucid.runtime.processors import processors

        if self.cluster is None:
            for name in ("replicas", "max_replicas", "replica_cpus", "stages"):
                if (value := getattr(self, name)) is not None:
                    option = f"--{name.replace('_', '-')} {value}"
                    raise InvalidRequest(f"{option} is for a cluster: add --cluster auto, or --cluster ADDRESS")
            return None
        minimum = 1 if self.replicas is None else whole("replicas", self.replicas, 1, MAX_REPLICAS)
        most, cpus = self.max_replicas, self.replica_cpus
        return Replicas(
            self.cluster,
            minimum,
            minimum if most is None else whole("max_replicas", most, minimum, MAX_REPLICAS),
            processors().threads if cpus is None else whole("replica_cpus", cpus, 1, MAX_CPUS),
            1 if self.stages is None else whole("stages", self.stages, 1, MAX_STAGES),
        )


CLUSTER = get_type_hints(ClusterOptions, include_extras=True)
FixedCluster: TypeAlias = Annotated[
    ClusterOptions, OptionGroup({name: one for name, one in CLUSTER.items() if name != "max_replicas"})
]


def _outlive_hangups() -> None:
    """Keep SIGHUP from ending this process until the server handles it. Imports and Ray take seconds."""
    if not hasattr(signal, "SIGHUP"):
        return
    line = b"SIGHUP: the replicas are starting and are not replaced; send it again when one is up\n"
    with suppress(ValueError):  # only the main thread may set handlers
        # A function, because child processes would inherit an ignored signal.
        signal.signal(signal.SIGHUP, lambda *_: os.write(2, line))


@contextmanager
def _installed() -> Iterator[None]:
    """Convert an ImportError to an InvalidRequest that names the packages to install."""
    try:
        yield
    except ImportError as error:
        raise InvalidRequest(
            f"a cluster needs {error.name}, which is not installed: pip install 'pellucid[cluster]'"
        ) from None


def _secret() -> ClusterSecret:
    from pellucid.cluster.secret import ClusterSecret

    text = common.secret(SECRET)
    return ClusterSecret.drawn() if text is None else ClusterSecret(text)
