"""Options of commands that run models on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import common
from pellucid.errors import InvalidRequest
from pellucid.util.checks import whole

if TYPE_CHECKING:
    from pellucid.cluster.actors import ReplicaSettings
    from pellucid.cluster.secret import ClusterSecret
    from pellucid.serve.guard import AccessRules
    from pellucid.serve.served_model import ServedModel
    from pellucid.serve.server import Settings

Cluster = Annotated[
    str | None,
    typer.Option(
        help="Run the models on a cluster of Ray: its address, or auto. Needs pip install 'pellucid[cluster]'.",
        metavar="ADDRESS",
    ),
]
ReplicaCount = Annotated[Any, common.count("How many replicas of each model there are; with --cluster.")]
MaxReplicas = Annotated[Any, common.count("How many there may be while there is much to do; with --cluster.")]
ReplicaCpus = Annotated[
    Any, common.count("Cores of each replica, by default all of this machine; with --cluster.")
]
StageCount = Annotated[
    Any, common.count("Over how many machines each replica's blocks are divided; with --cluster.")
]
MOST_REPLICAS, MOST_CPUS, MOST_STAGES = 10_000, 1024, 1000
SECRET = "PELLUCID_CLUSTER_SECRET"


@dataclass(frozen=True)
class Replicas:
    """Options of a cluster: its ``address``, and ``least`` to ``most`` replicas of each model.

    A replica runs on ``stages`` machines with ``cpus`` cores each.
    """

    address: str
    least: int
    most: int
    cpus: int
    stages: int

    @classmethod
    def of(
        cls, address: str | None, least: int | None, most: int | None, cpus: int | None, stages: int | None
    ) -> Replicas | None:
        """Check the options; None if no cluster is requested.

        Raises:
            InvalidRequest: a number is out of range, or is given without a cluster.
        """
        from pellucid.runtime.processors import processors

        given = {"--replicas": least, "--max-replicas": most, "--replica-cpus": cpus, "--stages": stages}
        if address is None:
            for name, value in given.items():
                if value is not None:
                    raise InvalidRequest(
                        f"{name} {value} is for a cluster: give --cluster auto, or its address"
                    )
            return None
        least = 1 if least is None else whole("replicas", least, 1, MOST_REPLICAS)
        most = least if most is None else whole("max_replicas", most, least, MOST_REPLICAS)
        return cls(
            address,
            least,
            most,
            processors().threads if cpus is None else whole("replica_cpus", cpus, 1, MOST_CPUS),
            1 if stages is None else whole("stages", stages, 1, MOST_STAGES),
        )

    def serve(
        self,
        models: Mapping[str, tuple[str, Mapping[str, Any]]],
        queue: int,
        rules: AccessRules,
        settings: Settings,
    ) -> None:
        """Serve models on the cluster. ``models`` maps names to the model to load and the options of ``load``.

        Raises:
            InvalidRequest: a package that clusters need is not installed, or the cluster does not exist.
        """
        with _installed():
            from pellucid.cluster.ingress import serve_cluster
        replicas = {name: self._settings(*what) for name, what in models.items()}
        serve_cluster(replicas, self.address, _secret(), queue, rules, settings)

    @contextmanager
    def model(self, name: str, options: Mapping[str, Any]) -> Iterator[ServedModel]:
        """A model on the cluster, for a command without a server.

        Raises: as ``serve``.
        """
        with _installed():
            from pellucid.cluster.supervised import model_on_cluster
        with model_on_cluster(self._settings(name, options), self.address, _secret()) as model:
            yield model

    def _settings(self, source: str, options: Mapping[str, Any]) -> ReplicaSettings:
        from pellucid.cluster.actors import ReplicaSettings

        given = {option: value for option, value in options.items() if value is not None}
        if "draft" in given and self.stages > 1:
            raise InvalidRequest("a draft model and stages do not go together: leave out --draft or --stages")
        return ReplicaSettings(source, given, self.cpus, self.least, self.most, self.stages)


@contextmanager
def _installed() -> Iterator[None]:
    """Convert an ImportError to an InvalidRequest that names the packages to install."""
    try:
        yield
    except ImportError as missing:
        raise InvalidRequest(
            f"a cluster needs what is not installed ({missing.name}): pip install 'pellucid[cluster]'"
        ) from None


def _secret() -> ClusterSecret:
    from pellucid.cluster.secret import ClusterSecret

    text = os.environ.get(SECRET)
    return ClusterSecret.drawn() if text is None else ClusterSecret(text)
