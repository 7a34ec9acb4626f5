"""What is in deploy/ says the same as the code, and the tools that will read it accept it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.trainer.jobs.supervise import SAVE_GRACE_S
from services.trainer.worker import VALIDATIONS_AT_ONCE
from shared.queue import TRAIN_QUEUE, VALIDATE_QUEUE
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "selftune"
KUBERNETES = ("1.27", "1.33")
SERVICES = ("api", "trainer", "inference")
VALUES: dict[str, Any] = {"redis": {"host": "redis.example.com"}, "secrets": {"existingSecret": "selftune"}}
FULL: dict[str, Any] = {
    **VALUES,
    "redis": {"host": "r", "port": 6380, "tls": True, "username": "u", "existingSecret": "redis", "urlOptions": "a=b"},
    "settings": {"organization": "acme", "max_file_bytes": 8589934592, "model_aliases": {"a": "b"}},
    "storage": {"kind": "s3", "s3": {"url": "s3://bucket/x", "endpoint": "http://s3:9000", "existingSecret": "s3"}},
    "models": {"existingClaim": "models"},
    "api": {"autoscaling": {"enabled": True}},
    "trainer": {"gpus": 2, "autoscaling": {"enabled": True, "jobsPerTrainer": 3}},
    "inference": {
        "autoscaling": {"enabled": True},
        "pools": {"gpu": {"gpus": 1, "baseModel": "org/big", "autoscaling": {"by": "requests"}}},
    },
    "networkPolicy": {"apiFrom": [{"podSelector": {}}], "metricsFrom": [{"namespaceSelector": {}}]},
    "ingress": {"enabled": True, "tlsSecret": "tls", "className": "nginx"},
    "image": {"pullSecrets": [{"name": "registry"}]},
}
Manifest = dict[str, Any]


def render(values: dict[str, Any]) -> list[Manifest]:
    """Render the chart with Helm itself, as release `prod` in the namespace `ai`."""
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk, which holds Helm, is not installed")
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="prod", namespace="ai")
    texts = (text for name, text in sorted(files.items()) if name.endswith(".yaml"))
    return [manifest for text in texts for manifest in yaml.load_all(text, Strict) if manifest]


class Strict(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"written twice in {keys}: {node.start_mark}"
        return super().construct_mapping(node, deep)


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [one for one in manifests if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Give each pod's service and specification."""
    for one in manifests:
        if one["kind"] == "Deployment":
            yield one["metadata"]["labels"]["app.kubernetes.io/component"], one["spec"]["template"]["spec"]


@pytest.fixture(params=["smallest", "full"])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(VALUES if request.param == "smallest" else FULL)


def test_helm_finds_nothing_wrong_with_the_chart() -> None:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk, which holds Helm, is not installed")
    found = helm.lint(str(CHART), FULL)
    assert [one["error"] for one in found["messages"] if one["error"] != "icon is recommended"] == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_what_is_rendered(manifests: list[Manifest], version: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for manifest in manifests:
        if not manifest["apiVersion"].startswith("keda.sh/"):
            schemas.validate(manifest, version, strict=True)


def test_pods_may_do_nothing_that_they_need_not(manifests: list[Manifest]) -> None:
    assert {service for service, _ in pods(manifests)} == set(SERVICES)
    for service, pod in pods(manifests):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True, service
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert written <= {"/data", "/tmp", "/dev/shm"}
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


def test_every_variable_is_a_setting(manifests: list[Manifest]) -> None:
    settings = {f"SELFTUNE_{name.upper()}" for name in Settings.__struct_fields__}
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap":
            assert {name for name in manifest["data"] if name.startswith("SELFTUNE_")} <= settings
            assert all(isinstance(value, str) for value in manifest["data"].values())
    for _, pod in pods(manifests):
        variables = [one["name"] for one in pod["containers"][0]["env"]]
        assert {name for name in variables if name.startswith("SELFTUNE_")} <= settings
        assert len(variables) == len(set(variables))


def test_settings_arrive_as_they_were_written() -> None:
    """Numbers of a chart's values are floating point to Helm, which would write 8.589934592e+09."""
    data = named(render(FULL), "ConfigMap", "prod-selftune")["data"]
    settings = Settings.load(environ={name: value for name, value in data.items() if name != "SELFTUNE_DATA_DIR"})
    assert (settings.organization, settings.max_file_bytes) == ("acme", 8 << 30)
    assert settings.model_aliases == {"a": "b"}
    assert data["SELFTUNE_STORAGE_ENDPOINT"] == "http://s3:9000"


def test_redis_password_is_never_in_a_manifest_and_comes_before_its_url() -> None:
    for _, pod in pods(render(FULL)):
        env = pod["containers"][0]["env"]
        names = [one["name"] for one in env]
        assert names.index("REDIS_PASSWORD") < names.index("SELFTUNE_REDIS_URL")
        url = next(one["value"] for one in env if one["name"] == "SELFTUNE_REDIS_URL")
        assert url == "rediss://u:$(REDIS_PASSWORD)@r:6380/0?a=b"


def test_trainers_follow_the_queues_that_the_code_fills() -> None:
    scaled = named(render(FULL), "ScaledObject", "prod-selftune-trainer")["spec"]
    lengths = {one["metadata"]["listName"]: one["metadata"]["listLength"] for one in scaled["triggers"]}
    assert lengths == {TRAIN_QUEUE: "3", VALIDATE_QUEUE: str(VALIDATIONS_AT_ONCE)}
    assert scaled["minReplicaCount"] == 1, "the reaper runs in trainers"
    assert {one["authenticationRef"]["name"] for one in scaled["triggers"]} == {"prod-selftune-redis"}
    trainer = named(render(FULL), "Deployment", "prod-selftune-trainer")
    assert "replicas" not in trainer["spec"], "KEDA and the chart would both set it"
    assert all(isinstance(value, str) for one in scaled["triggers"] for value in one["metadata"].values())


def test_pools_override_the_values_that_they_share() -> None:
    manifests = render(FULL)
    (default, gpu) = (named(manifests, "Deployment", f"prod-selftune-inference-{name}") for name in ("default", "gpu"))
    limits = [one["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for one in (default, gpu)]
    assert [one.get("nvidia.com/gpu") for one in limits] == [None, 1]
    images = [one["spec"]["template"]["spec"]["containers"][0]["image"] for one in (default, gpu)]
    assert [image.endswith("-cuda") for image in images] == [False, True]
    assert named(manifests, "HorizontalPodAutoscaler", "prod-selftune-inference-default")
    assert named(manifests, "ScaledObject", "prod-selftune-inference-gpu")
    selectors = [one["spec"]["selector"]["matchLabels"]["selftune/pool"] for one in (default, gpu)]
    assert selectors == ["default", "gpu"]


def test_only_api_and_trainer_reach_the_inference_servers() -> None:
    manifests = render(VALUES)
    (rule,) = named(manifests, "NetworkPolicy", "prod-selftune-inference")["spec"]["ingress"]
    callers = [one["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in rule["from"]]
    assert callers == ["api", "trainer"]
    assert named(manifests, "NetworkPolicy", "prod-selftune-trainer")["spec"]["ingress"] == []


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("", 443), ("https://s3.example.com", 443), ("http://s3", 80), ("http://[fd00::1]:9000", 9000)],
)
def test_pods_may_reach_the_object_store_at_its_port(endpoint: str, port: int) -> None:
    values = {**FULL, "storage": {"kind": "s3", "s3": {"url": "s3://bucket", "endpoint": endpoint}}}
    egress = named(render(values), "NetworkPolicy", "prod-selftune-inference")["spec"]["egress"]
    assert [one["ports"][0]["port"] for one in egress[:3]] == [53, 6380, port]


def test_pods_get_the_time_that_they_need_to_stop(manifests: list[Manifest]) -> None:
    grace = {service: pod["terminationGracePeriodSeconds"] for service, pod in pods(manifests)}
    assert grace["trainer"] > SAVE_GRACE_S


@pytest.mark.parametrize(
    ("change", "named_value"),
    [
        ({"redis": {"host": ""}}, "/redis/host"),
        ({"storage": {"kind": "s3"}}, "/storage/s3/url"),
        ({"storage": {"kind": "nfs"}}, "/storage/kind"),
        ({"storage": {"kind": "s3", "s3": {"url": "s3://bucket"}}}, "models.existingClaim"),
        ({"secrets": {"internalKey": "short"}}, "/secrets/internalKey"),
        ({"trainers": {"replicas": 2}}, "trainers"),
        ({"inference": {"pools": {"Not a name": {}}}}, "Not a name"),
        ({"secrets": {"existingSecret": ""}}, "secrets.adminKey"),
    ],
)
def test_wrong_value_is_refused_by_its_name(change: dict[str, Any], named_value: str) -> None:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk, which holds Helm, is not installed")
    with pytest.raises(helm.HelmError, match=re.escape(named_value)):
        render({**VALUES, **change})


def compose(name: str = "compose.yaml") -> Manifest:
    read: Manifest = yaml.safe_load((DEPLOY / name).read_text())
    return read


def test_containers_may_do_nothing_that_they_need_not() -> None:
    services = compose()["services"]
    assert set(SERVICES) < set(services)
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "published on loopback only"
    assert {services[name]["user"] for name in SERVICES} == {"10001:10001"}
    assert all(services[name]["tmpfs"] == ["/tmp:exec,mode=1777"] for name in SERVICES), "compiled code runs there"


def test_database_and_inference_server_are_on_a_network_without_a_way_out() -> None:
    document = compose()
    assert document["networks"]["inside"] == {"internal": True}
    assert document["services"]["valkey"]["networks"] == document["services"]["inference"]["networks"] == ["inside"]


def test_database_keeps_what_it_acknowledges() -> None:
    command = compose()["services"]["valkey"]["command"]
    settings = dict(zip(command[1::2], command[2::2], strict=True))
    assert settings["--appendonly"] == "yes"
    assert settings["--appendfsync"] == "everysec"
    assert settings["--maxmemory-policy"] == "noeviction"
    assert {compose()["services"][name]["depends_on"]["valkey"]["condition"] for name in SERVICES} == {
        "service_healthy"
    }


def test_variables_in_the_compose_file_are_settings() -> None:
    settings = {f"SELFTUNE_{name.upper()}" for name in Settings.__struct_fields__}
    services = compose()["services"]
    assert {name for service in SERVICES for name in services[service]["environment"]} <= settings


def test_what_the_compose_files_refer_to_is_there() -> None:
    document, gpu = compose(), compose("compose.gpu.yaml")
    assert set(gpu["services"]) < set(document["services"])
    for service in document["services"].values():
        assert "configs" not in service, "compose cannot write them into a container that is read-only"
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in document["volumes"], volume
    for file in (DEPLOY / "compose").iterdir():
        assert yaml.safe_load(file.read_text())
        assert f"./compose/{file.name}:" in (DEPLOY / "compose.yaml").read_text()


def test_api_that_is_full_is_not_taken_for_dead() -> None:
    """It answers 503 to whoever comes then, which kubelet and urllib take for a failure."""
    for service, pod in pods(render(VALUES)):
        if service == "api":
            assert pod["containers"][0]["livenessProbe"]["tcpSocket"] == {"port": "http"}
    assert "urllib" not in stages()["api"]


def stages() -> dict[str, str]:
    """Return what the Dockerfile says of each stage, by name."""
    parts = re.split(r"^FROM \S+ AS (\S+)\n", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_hadolint_finds_nothing_wrong_with_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize("service", SERVICES)
def test_image_runs_its_service_as_a_normal_user_and_says_when_it_is_well(service: str) -> None:
    stage = stages()[service]
    assert "USER 10001:10001" in stage
    assert "HEALTHCHECK" in stage
    assert stage.rstrip().endswith(f'CMD ["python", "-m", "services.{service}"]')


def test_api_image_has_no_compiler_and_every_image_only_its_service() -> None:
    text = stages()
    assert "gcc" not in text["base"] + text["api"] + text["build-api"]
    for service in SERVICES:
        copied = re.findall(r"^COPY services/(\w+) ", text[f"build-{service}"], re.MULTILINE)
        assert copied == [service]


def test_docker_is_given_what_the_dockerfile_copies_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    given = {line[1:] for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert ignored[1] == "*"
    assert given == {name.partition("/")[0] for names in copied for name in names.split()}


UNITS = DEPLOY / "systemd"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they are installed, with this checkout in the place of /opt/selftune."""
    folder = Path(shutil.copytree(UNITS, tmp_path / "units", symlinks=True))
    for unit in folder.glob("*.service"):
        unit.write_text(unit.read_text().replace("/opt/selftune", str(ROOT)))
    return folder


def analyze(units: Path, *arguments: str) -> str:
    """Return what systemd-analyze says of the units."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_systemd_finds_nothing_wrong_with_the_units(units: Path) -> None:
    files = sorted(str(path) for path in units.iterdir() if path.is_file())
    assert len(files) == 5
    assert analyze(units, "verify", *files) == ""


@pytest.mark.parametrize("unit", ["selftune", *(f"selftune-{name}" for name in SERVICES)])
def test_unit_is_confined(units: Path, unit: str) -> None:
    """systemd's own score, from 0 to 10; above 2.5 something that may be withheld is not."""
    said = analyze(units, "security", "--offline=yes", f"{unit}.service")
    score = re.search(r"exposure level for \S+: ([\d.]+)", said)
    assert score, said
    assert float(score[1]) <= 2.5


@pytest.mark.parametrize("service", SERVICES)
def test_unit_starts_what_the_image_starts(service: str) -> None:
    unit = (UNITS / f"selftune-{service}.service").read_text()
    assert f"\nExecStart=/opt/selftune/.venv/bin/python -m services.{service}\n" in unit


def test_units_give_the_time_that_is_needed_to_stop() -> None:
    given = {
        path.stem: int(found[1])
        for path in UNITS.glob("*.service")
        if (found := re.search(r"^TimeoutStopSec=(\d+)$", path.read_text(), re.MULTILINE))
    }
    assert given["selftune-trainer"] > SAVE_GRACE_S
    assert given["selftune"] >= given["selftune-trainer"] + given["selftune-api"]
