"""deploy/ as far as it can be told without an engine: images are pinned, what is named exists, nothing is public."""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tmemd.base.parsers import split_address
from tmemd.config.settings import OPTIONS, load

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"


def _compose(name: str) -> Any:
    """A Compose file with the defaults of its variables; `!override` is for Compose alone."""
    text = (DEPLOY / name).read_text().replace("!override ", "")
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


COMPOSE = _compose("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SECURED: dict[str, dict[str, Any]] = _compose("compose.tls.yaml")["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNIT = (DEPLOY / "tmemd.service").read_text()

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


@each_service
def test_images_are_pinned(service: dict[str, Any]) -> None:
    name, _, tag = service["image"].rpartition(":")
    assert name
    assert tag == "local" if name == "tmem" else re.fullmatch(r"v?\d+\.\d+\.\d+", tag)


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
        elif source.startswith("/"):
            assert source == "/dev/shm"
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
    # Compose refuses limits of the service itself beside those of its resources.
    assert not service.keys() & {"pids_limit", "mem_limit", "mem_reservation", "cpus"}


@each_service
def test_services_name_each_other_rightly(service: dict[str, Any]) -> None:
    assert set(service.get("depends_on", ())) <= SERVICES.keys()
    assert set(service.get("networks", ())) <= COMPOSE["networks"].keys()
    assert "ipc" not in service


def test_the_daemon_gets_settings_that_it_takes_and_has_room_for() -> None:
    service = SERVICES["tmemd"]
    assert {name.removeprefix("TMEMD_").lower() for name in service["environment"]} <= OPTIONS.keys()
    config = load({}, service["environment"])
    assert service["ports"] == [f"127.0.0.1:{split_address(config.listen)[1]}:7717"]
    assert service["healthcheck"]["test"] == ["CMD", "python", "-m", "tmemd.probe"]
    assert SERVICES["demo"]["entrypoint"][-1] == "tmemd:7717"
    mounts = dict(reversed(volume.split(":")) for volume in service["volumes"])
    assert mounts[str(Path(config.arena or "").parent)] == "/dev/shm", "the host's, which no container's end empties"
    assert int(service["deploy"]["resources"]["limits"]["memory"].removesuffix("G")) << 30 > config.memory
    assert service["ulimits"]["memlock"] == {"soft": -1, "hard": -1}
    assert int(service["stop_grace_period"].removesuffix("s")) > config.drain


def test_tls_is_set_whole_and_its_folders_are_what_the_script_makes() -> None:
    plain, secured = SERVICES["tmemd"], SECURED["tmemd"]
    environment = {**plain["environment"], **secured["environment"]}
    config = load({}, environment)
    assert not config.insecure
    files = {name: Path(environment[f"TMEMD_TLS_{name}"]) for name in ("CERT", "KEY", "CLIENT_CA")}
    (mount,) = secured["volumes"]
    assert mount == f"./tls/tmemd:{files['CERT'].parent}:ro"
    assert {path.parent for path in files.values()} == {files["CERT"].parent}
    script = (DEPLOY / "certificates.sh").read_text()
    assert re.search(r"^issue 7717:7717 tmemd server ", script, re.MULTILINE)
    assert re.search(r"^issue 65534:65534 prometheus prometheus ", script, re.MULTILINE)
    assert re.search(
        rf"^issue 7717:7717 demo {SECURED['demo']['entrypoint'][-1].strip('/').replace('tls', 'demo')} ", script, re.M
    )
    assert config.metrics_clients == ("prometheus",)
    scraped = [
        yaml.safe_load((DEPLOY / "prometheus" / name).read_text()) for name in ("prometheus.yml", "prometheus.tls.yml")
    ]
    (job,) = scraped[1]["scrape_configs"]
    assert job.pop("scheme") == "https"
    assert job.pop("tls_config").keys() == {"ca_file", "cert_file", "key_file"}
    assert scraped[0] == scraped[1]


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
    assert {path.split("/")[0] for path in copied} == sent
    assert all((ROOT / source).exists() for source in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    assert {Path(folder).parts[0] for folder in packages.values()} <= copied


def test_the_image_is_built_with_what_the_project_asks_for() -> None:
    arguments = dict(words[0].split("=") for name, *words in instructions() if name == "ARG" and "=" in words[0])
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    assert arguments["RUST_IMAGE"].startswith(f"rust:{workspace['rust-version']}")
    assert all(re.fullmatch(r"\w+:\d+\.\d+\.\d+-slim-bookworm", image) for image in arguments.values())
    bases = {words[0] for name, *words in instructions() if name == "FROM"}
    assert bases == {f"${{{name}}}" for name in arguments}
    assert set(SERVICES["tmemd"]["build"]["args"]) == arguments.keys()
    assert "syntax=" not in DOCKERFILE, "a frontend that the engine would fetch, by whatever is at its tag today"


def test_the_image_runs_as_nobody_special_without_compilers() -> None:
    stages = " ".join(map(" ".join, instructions())).split("FROM ")
    final = stages[-1]
    assert not re.search(r"gcc|cargo|rustup|pip install", final)
    assert "USER 7717:7717" in final
    assert "STOPSIGNAL SIGTERM" in final
    assert re.search(r'HEALTHCHECK .* CMD \["python", "-m", "tmemd.probe"\]', final)


def test_all_that_is_installed_is_checked() -> None:
    for command in re.findall(r"pip install [^&]*", " ".join(map(" ".join, instructions()))):
        assert "--require-hashes -r requirements" in command or "--no-deps --no-index /wheels/" in command
    (extension,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools-rust"]["ext-modules"]
    assert extension["args"] == ["--locked", "--profile=dist"]
    profile = tomllib.loads((ROOT / "Cargo.toml").read_text())["profile"]["dist"]
    assert (profile["inherits"], profile["debug"], profile["strip"]) == ("release", False, "symbols")


def _locked(name: str) -> dict[str, str]:
    """The packages of a lock, each with its version and hashes."""
    blocks = re.split(r"\n(?=\S)", (ROOT / name).read_text())
    return {block.partition("==")[0]: block.strip() for block in blocks if "==" in block}


def test_what_runs_is_locked_as_what_is_tested_and_whole() -> None:
    runs, tested = _locked("requirements.lock"), _locked("requirements-dev.lock")
    assert all("--hash=sha256:" in block for block in runs.values())
    assert runs.items() <= tested.items(), "make lock"
    needed, found = [Requirement("tmem[server,cli]")], set()
    while needed:
        asked = needed.pop()
        if (asked.name, *asked.extras) in found:
            continue
        found.add((asked.name, *asked.extras))
        for text in importlib.metadata.requires(asked.name) or ():
            of = Requirement(text)
            if of.marker is None or any(of.marker.evaluate({"extra": extra}) for extra in ("", *asked.extras)):
                needed.append(of)
    assert {re.sub(r"[-_.]+", "-", name).lower() for name, *_ in found} - {"tmem"} == runs.keys()


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.tls.yaml"]], ids=["plain", "tls"])
def test_compose_is_valid_to_docker(files: list[str]) -> None:
    command = ["docker", "compose"]
    if shutil.which("docker") is None or subprocess.run([*command, "version"], capture_output=True).returncode:
        pytest.skip("there is no docker compose")
    checked = subprocess.run(
        [*command, *(f"--file={DEPLOY / name}" for name in files), "--profile", "demo", "config", "--quiet"],
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
    assert settings["ExecReload"] == "/bin/sh -c 'kill -HUP $MAINPID'"
    # The group reaches the sockets, and nobody else does.
    assert (settings["RuntimeDirectoryMode"], settings["UMask"]) == ("0750", "0007")
    assert (DEPLOY / "tmemd.sysusers.conf").read_text().splitlines()[-1].split()[1] == settings["User"]
