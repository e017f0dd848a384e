"""The health check of deploy/, and the word that the service manager gets: both of a real daemon."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.integration.daemon.test_process import until
from tests.lib.certificates import Authority
from tests.lib.daemon import Client, daemon
from tests.lib.support import PATIENCE


def probe(*arguments: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tmemd.probe", *arguments]
    environment = {**os.environ, **{f"TMEMD_{name.upper()}": str(value) for name, value in settings.items()}}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment)


def test_a_daemon_that_serves_is_healthy() -> None:
    with daemon() as running:
        asked = probe(running.address)
        assert (asked.returncode, asked.stdout, asked.stderr) == (0, "", "")
        assert probe(running.address, "--service=").returncode == 0
        unknown = probe(running.address, "--service=tmem.v1.Other")
        assert (unknown.returncode, "NOT_FOUND" in unknown.stderr) == (1, True)
    gone = probe(running.address)
    assert (gone.returncode, "UNAVAILABLE" in gone.stderr) == (1, True)
    assert running.address in gone.stderr


def test_the_daemon_of_this_machine_is_found_by_its_settings(tmp_path: Path) -> None:
    with daemon("--drain=3600") as running, closing(Client(running.address)) as client:
        listen, metrics = running.address, running.metrics_url.split("/")[2]
        port = listen.rpartition(":")[2]
        file = tmp_path / "tmemd.toml"
        file.write_text(f'listen = "{listen}"\n')
        assert probe(config=file).returncode == 0
        assert probe(f"--config={file}").returncode == 0
        assert probe(listen=f"0.0.0.0:{port}").returncode == 0
        assert probe(listen="127.0.0.1:1", metrics=metrics).returncode == 0
        stub: Any = HealthStub(client.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        running.process.terminate()
        until(lambda: probe(metrics=metrics).returncode)
        assert probe(metrics=metrics).stderr == f"tmemd.probe: {metrics}: not ready: stopping\n"
        watch.cancel()
    assert "127.0.0.1:1: UNAVAILABLE: Connection refused" in probe(listen="127.0.0.1:1").stderr
    file.write_text("listen = ")
    assert f"{file}: Invalid" in probe(config=file).stderr


def test_it_costs_next_to_nothing() -> None:
    """No library is imported: each would cost more than all the rest."""
    with daemon() as running:
        told = "import sys; from tmemd.probe import main; main(sys.argv[1:]); print(*sys.modules)"
        command = [sys.executable, "-c", told, running.address]
        imported = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.split()
    assert "tmemd.probe" in imported
    assert not {"grpc", "google.protobuf", "asyncio", "ssl", "tmemd.config.settings"} & {*imported}


@pytest.mark.parametrize("clients", [False, True])
def test_tls_needs_no_arguments_where_the_settings_are_the_daemons(tmp_path: Path, clients: bool) -> None:
    """It is known by its own certificate, and asks nothing that takes another."""
    authority = Authority(tmp_path / "authority")
    own, other = authority.server(), Authority(tmp_path / "other").server()
    flags = authority.flags(own)[: 3 if clients else 2]
    settings = {flag.split("=")[0].removeprefix("--").replace("-", "_"): flag.split("=")[1] for flag in flags}
    with daemon(*flags, "--metrics=0.0.0.0:0") as running:
        metrics = running.metrics_url.split("/")[2]
        asked = probe(**settings, listen="127.0.0.1:1", metrics=metrics)
        assert (asked.returncode, asked.stderr) == (0, "")
        asked = probe(**settings, listen=running.address)
        assert (asked.returncode, asked.stderr) == (0, "")
        forged = {**settings, "tls_cert": str(other.cert), "tls_key": str(other.key)}
        assert "it shows another certificate than" in probe(**forged, listen=running.address).stderr


def test_something_that_never_answers_is_not_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = probe(f"127.0.0.1:{silent.getsockname()[1]}", "--timeout=0.3")
    assert (asked.returncode, "DEADLINE_EXCEEDED" in asked.stderr) == (1, True)


def test_it_speaks_tls_and_shows_its_own_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("tmemd.example", "probe.example"):
        made = authority.issue_cert(name)
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    served = [f"--tls-cert={tmp_path}/tmemd.example.pem", f"--tls-key={tmp_path}/tmemd.example.key"]
    trusted = [f"--ca={tmp_path}/ca.pem", "--name=tmemd.example"]
    own = [f"--cert={tmp_path}/probe.example.pem", f"--key={tmp_path}/probe.example.key"]
    with daemon(*served, f"--tls-client-ca={tmp_path}/ca.pem") as running:
        assert probe(running.address, *trusted, *own).returncode == 0
        assert probe(running.address, *trusted).returncode == 1
        assert probe(running.address).returncode == 1
    assert "No such file" in probe("127.0.0.1:1", f"--ca={tmp_path}/none.pem").stderr


def test_the_service_manager_is_told_when_calls_are_answered(tmp_path: Path) -> None:
    for workers in ("--workers=1", "--workers=2"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            path = tmp_path / workers
            manager.bind(str(path))
            manager.settimeout(PATIENCE)
            environment = {**os.environ, "NOTIFY_SOCKET": str(path)}
            command = [sys.executable, "-m", "tmemd", "--listen=127.0.0.1:0", "--memory=64MiB", workers]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
            try:
                assert manager.recv(100) == b"READY=1"
                process.terminate()
                said, _ = process.communicate(timeout=PATIENCE)
                address = said.splitlines()[-1].removeprefix("listening on ")
                assert process.returncode == 0
                assert address.startswith("127.0.0.1:")
            finally:
                process.kill()
                process.wait()


def test_a_manager_that_cannot_be_told_hinders_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tmemd", "--listen=127.0.0.1:0", "--memory=64MiB"]
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "nobody")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("listening on ") for line in process.stdout)
        process.terminate()
        _, logged = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert f"cannot notify the service manager at {tmp_path / 'nobody'} of READY=1" in logged
