"""Checks the files of deploy/ with the tools that read them: make test-deploy.

The image's file with hadolint, the chart with Helm, the objects of the chart and of KubeRay's file with the schemas of
Kubernetes, the unit with systemd-analyze where there is one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "pellucid"
VERSIONS = ("1.30", "1.33")
EVERYTHING = {
    "models": ["smollm2", "minilm"],
    "options": ["--context", "8192"],
    "key": "secret",
    "autoscaling": {"enabled": True},
    "podDisruptionBudget": {"enabled": True, "maxUnavailable": "50%"},
    "imagePullSecrets": [{"name": "registry"}],
    "persistence": {"accessModes": ["ReadWriteMany"], "storageClass": "nfs"},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "cert", "annotations": {"a": "b"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "otlpEndpoint": "http://collector:4318",
    "env": [{"name": "HF_TOKEN", "value": "x"}],
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "llm", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
"""Values that switch on every part of the chart."""
REFUSED = (
    ({"replica": 2}, "replica"),
    ({"models": []}, "models"),
    ({"replicas": 2}, "ReadWriteOnce serves one pod"),
    ({"autoscaling": {"enabled": True}}, "ReadWriteOnce serves one pod"),
    (
        {"autoscaling": {"enabled": True, "minReplicas": 9}, "persistence": {"enabled": False}},
        "minReplicas=9: must be at most autoscaling.maxReplicas, 4",
    ),
    (
        {"autoscaling": {"enabled": True}, "persistence": {"enabled": False}, "resources": {"requests": None}},
        "resources.requests.cpu",
    ),
    ({"podDisruptionBudget": {"enabled": True, "maxUnavailable": "many"}}, "maxUnavailable"),
    ({"options": ["--port", "9000"]}, "options has --port, which the chart sets"),
    ({"options": ["--host=::1"]}, "options has --host, which the chart sets"),
    ({"options": ["--cluster", "auto"]}, "the chart has no Ray cluster"),
    ({"options": ["--replicas=2"]}, "the chart has no Ray cluster"),
    ({"options": ["--", "minilm"]}, "name models in models"),
)
"""Values that the chart refuses, and a part of the message."""


def image() -> None:
    subprocess.run([Path(sys.executable).parent / "hadolint", DEPLOY / "docker" / "Dockerfile"], check=True)


def chart() -> None:
    report = lint(CHART, strict=True)
    problems = [one for one in report["messages"] if one["severity"] > 1]
    assert not report["errors"], report["errors"]
    assert not problems, problems
    loaded = Chart.load(CHART)
    plain = {one["kind"]: one for one in objects(loaded.render(name="one"))}
    assert set(plain) == {"Deployment", "Service", "ServiceAccount", "PersistentVolumeClaim"}
    full = {one["kind"]: one for one in objects(loaded.render(values=EVERYTHING, name="one"))}
    scaled = {"HorizontalPodAutoscaler", "PodDisruptionBudget"}
    assert set(full) == {*plain, *scaled, "Secret", "Ingress", "ServiceMonitor"}
    assert "replicas" not in full["Deployment"]["spec"], "the autoscaler sets them"
    assert plain["Deployment"]["spec"]["replicas"] == 1
    dashed = objects(loaded.render(values={"models": ["--model", "-a.gguf"]}, name="one"))
    words = next(one for one in dashed if one["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    assert words[-3:] == ["--", "--model", "-a.gguf"]
    for one in (*plain.values(), *full.values()):
        if one["kind"] != "ServiceMonitor":  # a custom resource: Kubernetes has no schema for it
            valid(one)
    own = objects(loaded.render(values={"existingSecret": "mine", "persistence": {"existingClaim": "old"}}, name="one"))
    deployment = next(one for one in own if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["env"] == [{"name": "PELLUCID_KEY", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "key"}}}]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "old"}
    for values, message in REFUSED:
        assert message in refusal(loaded, values), f"{values}: not refused"
    arguments([*container["args"], *full["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]])
    monitor = full["ServiceMonitor"]["spec"]["endpoints"][0]
    assert monitor["authorization"]["credentials"]["name"] == full["Secret"]["metadata"]["name"]


def refusal(chart: Chart, values: dict[str, Any]) -> str:
    """The error message of a chart for values; "" if the chart accepts them."""
    try:
        chart.render(values=values, name="one")
    except HelmError as error:
        return str(error)
    return ""


def objects(rendered: dict[str, str]) -> list[dict[str, Any]]:
    """The Kubernetes objects of a rendered chart."""
    texts = (text for name, text in rendered.items() if name.endswith(".yaml"))
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def valid(one: dict[str, Any]) -> None:
    """Check an object with the schemas of Kubernetes. Unknown fields are errors."""
    for version in VERSIONS:
        kubernetes_validate.validate(one, version, strict=True)


def arguments(words: list[str]) -> None:
    """Check that `pellucid serve` has the options among ``words``."""
    known = (DEPLOY.parent / "src" / "pellucid" / "cli").rglob("*.py")
    text = "".join(path.read_text() for path in known)
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0]
            field = name.removeprefix("--").replace("-", "_")
            assert f'"{name}"' in text or re.search(rf"\b{field}: ", text), f"pellucid serve has no option {name}"


def kuberay() -> None:
    cluster, claim, service = yaml.safe_load_all((DEPLOY / "kuberay" / "raycluster.yaml").read_text())
    valid(service)
    valid(claim)
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    storage = {one["name"]: one.get("value", "") for one in head["containers"][0]["env"]}
    assert storage["RAY_gcs_storage_path"].startswith(head["containers"][0]["volumeMounts"][0]["mountPath"])
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": group["template"]["spec"]}
        valid(pod)
        (container,) = pod["spec"]["containers"]
        # Without it, Ray ends 60 seconds after its head.
        assert {"name": "RAY_gcs_rpc_server_reconnect_timeout_s", "value": "3600"} in container["env"]
        (script,) = container["args"]
        assert "$KUBERAY_GEN_RAY_START_CMD" in script
        subprocess.run(["bash", "-n", "-c", script], check=True)
        arguments([word for word in script.split("pellucid serve")[-1].split() if "pellucid serve" in script])


def compose() -> None:
    file = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
    (service,) = file["services"].values()
    context = (DEPLOY / "docker" / service["build"]["context"]).resolve()
    assert (context / service["build"]["dockerfile"]).exists()
    arguments(service["command"])
    assert {name.partition(":")[0] for name in service["volumes"]} == set(file["volumes"])


def unit() -> None:
    path = DEPLOY / "systemd" / "pellucid.service"
    text = path.read_text()
    (start,) = re.findall(r"^ExecStart=(.*)", text, re.MULTILINE)
    arguments(start.split())
    if not shutil.which("systemd-analyze"):
        print("unit: without systemd-analyze")
        return
    with tempfile.TemporaryDirectory() as folder:
        # systemd-analyze checks that the program exists, and here it is not installed.
        copy = Path(folder) / path.name
        copy.write_text(text.replace(start.split()[0], shutil.which("true") or ""))
        done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        rating = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=20", copy], capture_output=True, text=True
        )
        assert rating.returncode == 0, rating.stdout


def schema() -> Iterator[str]:
    """Values of the chart that its schema does not have, or the other way round."""
    declared = json.loads((CHART / "values.schema.json").read_text())["properties"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    yield from set(values) ^ (set(declared) - {"global"})


def main() -> None:
    assert not list(schema()), f"values.yaml and values.schema.json differ: {list(schema())}"
    for check in (image, chart, kuberay, compose, unit):
        check()
        print(f"{check.__name__}: ok")


if __name__ == "__main__":
    main()
