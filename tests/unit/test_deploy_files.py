"""deploy/ as far as it can be told without an engine: images are pinned, what is named exists, nothing is public."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tmemd.config import OPTIONS, load
from tmemd.values import split_address

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNIT = (DEPLOY / "tmemd.service").read_text()

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


@each_service
def test_images_are_pinned(service: dict[str, Any]) -> None:
    name, _, tag = service["image"].rpartition(":")
    assert name
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    assert name != "tmem" or tag == VERSION


@each_service
def test_ports_are_published_on_loopback_only(service: dict[str, Any]) -> None:
    for port in service.get("ports", ()):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@each_service
def test_what_is_mounted_exists(service: dict[str, Any]) -> None:
    for volume in service.get("volumes", ()):
        source, target, *mode = volume.split(":")
        assert target.startswith("/")
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


@each_service
def test_services_are_limited_hardened_and_looked_after(service: dict[str, Any]) -> None:
    assert service["deploy"]["resources"]["limits"].keys() >= {"memory", "cpus"}
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]


@each_service
def test_services_name_each_other_rightly(service: dict[str, Any]) -> None:
    assert set(service.get("depends_on", ())) <= SERVICES.keys()
    assert set(service.get("networks", ())) <= COMPOSE["networks"].keys()
    kind, _, other = service.get("ipc", "").partition(":")
    assert kind != "service" or SERVICES[other]["ipc"] == "shareable"


def test_the_daemon_gets_settings_that_it_takes_and_has_room_for() -> None:
    service = SERVICES["tmemd"]
    assert {name.removeprefix("TMEMD_").lower() for name in service["environment"]} <= OPTIONS.keys()
    config = load({}, service["environment"])
    assert service["ports"] == [f"127.0.0.1:{split_address(config.listen)[1]}:7717"]
    assert service["healthcheck"]["test"][-1] == "127.0.0.1:7717"
    assert SERVICES["demo"]["entrypoint"][-1] == "tmemd:7717"
    shared = SERVICES["arena"]["shm_size"]
    assert int(shared.removesuffix("gb")) << 30 > config.memory
    assert int(service["deploy"]["resources"]["limits"]["memory"].removesuffix("G")) << 30 > config.memory
    assert service["ulimits"]["memlock"] == {"soft": -1, "hard": -1}
    assert int(service["stop_grace_period"].removesuffix("s")) > config.drain


def test_prometheus_scrapes_the_daemon_and_grafana_reads_prometheus() -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == "tmemd:" + split_address(SERVICES["tmemd"]["environment"]["TMEMD_METRICS"])[1]
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "tmem.yml").read_text())["providers"]
    mounts = [volume.split(":") for volume in SERVICES["grafana"]["volumes"]]
    (dashboards,) = [host for host, inside, *_ in mounts if inside == provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / dashboards / Path(home).name).is_file()


def instructions() -> list[list[str]]:
    """The Dockerfile's instructions, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [line.split() for line in joined.splitlines() if line.strip()]


def test_what_the_image_is_made_of_exists_and_is_sent() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for name, *words in instructions():
        if name == "COPY" and not words[0].startswith("--from"):
            copied |= set(words[:-1])
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    assert {Path(folder).parts[0] for folder in packages.values()} <= copied


def test_the_image_is_built_with_what_the_project_asks_for() -> None:
    arguments = dict(words[0].split("=") for name, *words in instructions() if name == "ARG")
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    assert arguments["RUST"].startswith(workspace["rust-version"])
    assert all(re.match(r"\d+\.\d+\.\d+-slim-bookworm$", tag) for tag in arguments.values())
    assert f'version="{VERSION}"' in DOCKERFILE


def test_the_image_runs_as_nobody_special_without_compilers() -> None:
    stages = " ".join(map(" ".join, instructions())).split("FROM ")
    final = stages[-1]
    assert not re.search(r"gcc|cargo|rustup|pip", final)
    assert "USER 7717:7717" in final
    assert "STOPSIGNAL SIGTERM" in final
    assert re.search(r'HEALTHCHECK .* CMD \["python", "-m", "tmemd.probe"', final)


def test_compose_is_valid_to_docker() -> None:
    command = ["docker", "compose"]
    if shutil.which("docker") is None or subprocess.run([*command, "version"], capture_output=True).returncode:
        pytest.skip("there is no docker compose")
    checked = subprocess.run(
        [*command, "--file", str(DEPLOY / "compose.yaml"), "--profile", "demo", "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit_and_finds_it_tight(tmp_path: Path) -> None:
    path = tmp_path / "tmemd.service"
    path.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", UNIT))
    verified = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(path)]
    rated = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout + rated.stderr


def test_the_unit_waits_longer_than_the_daemon_drains_and_lets_memory_be_locked() -> None:
    settings = dict(line.split("=", 1) for line in UNIT.splitlines() if re.match(r"\w+=", line))
    assert int(settings["TimeoutStopSec"]) > load({}, {}).drain
    assert settings["LimitMEMLOCK"] == "infinity"
    assert settings["Type"] == "notify"
    assert settings["RemoveIPC"] == "no"
    assert (DEPLOY / "tmemd.sysusers.conf").read_text().splitlines()[-1].split()[1] == settings["User"]
