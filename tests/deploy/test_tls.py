"""compose.tls.yaml with the certificates that certificates.sh makes: who gets in, and certificates renewed in use."""

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tmem
from tests.deploy.stack import DEPLOY, Stack, docker, stack, until

EXPIRY = 'tmem_tls_certificate_expiry_timestamp_seconds{file="/etc/tmemd/tls/server.pem"}'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the certificates."""
    if os.geteuid() != 0:
        pytest.skip("only root can give the keys to the users of the containers")
    folder = tmp_path_factory.mktemp("tls")
    make(folder)
    return folder


def make(folder: Path) -> None:
    command = [str(DEPLOY / "certificates.sh"), "localhost", "alice"]
    subprocess.run(command, env={**os.environ, "TMEM_TLS": str(folder)}, check=True, capture_output=True)


def test_without_the_authoritys_key_nothing_is_renewed(made: Path) -> None:
    """Of a new authority every client would be shut out."""
    key, kept = made / "ca.key", made / "kept.key"
    before = {path: path.read_bytes() for path in made.rglob("*.pem")}
    key.rename(kept)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        make(made)
    kept.rename(key)
    assert b"ca.key is not there" in failed.value.stderr
    assert {path: path.read_bytes() for path in made.rglob("*.pem")} == before


@pytest.fixture(scope="module")
def secured(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack as operations.md brings it up over TLS."""
    with stack("tls", tmp_path_factory.mktemp("stack"), "compose.tls.yaml", TMEM_TLS=str(made)) as running:
        running.compose("up", "--build", "--detach", "--wait")
        yield running


def of(made: Path, name: str) -> tmem.Tls:
    return tmem.Tls(ca=made / "clients/ca.pem", cert=made / f"clients/{name}.pem", key=made / f"clients/{name}.key")


def test_keys_are_their_users_alone(made: Path) -> None:
    for name, user in (("tmemd/server", 7717), ("prometheus/prometheus", 65534), ("demo/demo", 7717)):
        key = (made / f"{name}.key").stat()
        assert (key.st_uid, key.st_mode & 0o777) == (user, 0o400)
    assert ((made / "ca.key").stat().st_mode & 0o777) == 0o600
    assert not [path for path in made.glob("*/*") if path.name == "ca.key"]


def test_it_comes_up(secured: Stack) -> None:
    secured.healthy("tmemd", "prometheus", "grafana")


def test_a_client_with_a_certificate_gets_in_under_its_name(secured: Stack, made: Path) -> None:
    address = f"localhost:{secured.environment['TMEM_PORT']}"
    with tmem.connect(address, tls=of(made, "alice")) as store:
        pool = store.pool("hers")
        pool.put(1, {0: b"x" * 4096})
        with pytest.raises(tmem.TmemError, match="administrator"):
            store.compact()
    with tmem.connect(address, tls=of(made, "ops")) as store:
        assert store.find_pool("hers").get(1, [0]) == {0: b"x" * 4096}
        assert store.compact() is not None


@pytest.mark.parametrize("tls", [None, "nobody's"])
def test_without_a_certificate_nobody_gets_in(secured: Stack, made: Path, tls: str | None) -> None:
    given = tmem.Tls(ca=made / "clients/ca.pem") if tls else None
    address = f"localhost:{secured.environment['TMEM_PORT']}"
    with pytest.raises(tmem.TmemError), tmem.connect(address, tls=given) as store:
        store.pools()


def test_prometheus_scrapes_over_tls(secured: Stack) -> None:
    assert until(lambda: secured.query("up == 1 and on (job, instance) tmem_build_info"))
    (target,) = secured.prometheus("targets")["activeTargets"]
    assert target["scrapeUrl"].startswith("https://")


def test_the_demo_runs_over_tls(secured: Stack) -> None:
    secured.compose("--profile", "demo", "up", "--detach")
    assert until(lambda: secured.query('rate(tmem_put_stored_pages_total{client="demo"}[1m]) > 0'))


def test_renewed_certificates_are_taken_while_it_runs(secured: Stack, made: Path) -> None:
    """Prometheus and clients of both ages go on; new connections see the new certificate."""
    port = int(secured.environment["TMEM_PORT"])
    before = secured.inspect("tmemd")["State"]["StartedAt"]
    old = ssl.get_server_certificate(("localhost", port))
    make(made)
    assert ssl.get_server_certificate(("localhost", port)) != old
    with tmem.connect(f"localhost:{port}", tls=of(made, "alice")) as store:
        assert store.find_pool("hers").get(1, [0])
    assert until(lambda: secured.query(f"changes({EXPIRY}[10m]) > 0"))
    assert secured.inspect("tmemd")["State"]["StartedAt"] == before


def test_the_health_check_of_one_that_cannot_read_its_key_tells_why(secured: Stack, made: Path) -> None:
    """As when root alone may: the reason is in the log, by name."""
    key = made / "tmemd/server.key"
    os.chown(key, 0, 0)
    try:
        docker("restart", secured.container("tmemd"))
        assert until(lambda: "/etc/tmemd/tls/server.key: Permission denied" in logs(secured))
    finally:
        os.chown(key, 7717, 7717)
    secured.healthy("tmemd")


def logs(running: Stack) -> str:
    found = subprocess.run(["docker", "logs", running.container("tmemd")], capture_output=True, text=True, check=True)
    return found.stdout + found.stderr
