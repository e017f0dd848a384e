"""deploy/compose.yaml on a real engine: it comes up as README says, is watched, and keeps its pages."""

import json
import os
import shlex
import subprocess
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.deploy.stack import DEPLOY, ROOT, Stack, docker, until

PAGES = 200
PUT = """
import sys, tmem
with tmem.connect("127.0.0.1:7717") as store:
    made = {index: sys.argv[1].encode() * 64 + bytes([index]) * 2000 for index in range(200)}
    pool = store.pool(sys.argv[1])
    pool.put(1, {index: page.ljust(4096) for index, page in made.items()})
    print(pool.stats()["pages"])
"""
COUNT = """
import sys, tmem
with tmem.connect("127.0.0.1:7717") as store:
    made = {index: sys.argv[1].encode() * 64 + bytes([index]) * 2000 for index in range(200)}
    found = store.find_pool(sys.argv[1]).get(1, range(200))
    print(sum(found.get(index) == page.ljust(4096) for index, page in made.items()))
"""
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules" / "tmem.yml").read_text())["groups"][0]["rules"]


def test_every_service_comes_up(plain: Stack) -> None:
    plain.healthy("tmemd", "prometheus", "grafana")


def test_the_port_is_published_on_loopback(plain: Stack) -> None:
    published = plain.inspect("tmemd")["NetworkSettings"]["Ports"]
    assert published["7717/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": plain.environment["TMEM_PORT"]}]
    assert not published["9117/tcp"]


@pytest.mark.parametrize("python", ["python", "/usr/local/bin/python3"])
@pytest.mark.parametrize("module", ["pip", "ensurepip", "setuptools"])
def test_the_image_installs_nothing(plain: Stack, python: str, module: str) -> None:
    tried = plain.compose("exec", "-T", "tmemd", python, "-c", f"import {module}", check=False)
    found = "import importlib.util as u, sys; print(u.find_spec(sys.argv[1]))"
    assert tried == ""
    assert plain.compose("exec", "-T", "tmemd", python, "-c", found, module).strip() == "None"


def test_the_image_has_no_compilers_and_no_debug_information(plain: Stack) -> None:
    which = (
        "import shutil; print([each for each in ('cc', 'gcc', 'cargo', 'rustc', 'pip', 'pip3') if shutil.which(each)])"
    )
    assert plain.python(which) == "[]"
    sizes = (
        "import pathlib, tmem_engine as e; print(*(p.stat().st_size for p in pathlib.Path(e.__path__[0]).glob('*.so')))"
    )
    (size,) = map(int, plain.python(sizes).split())
    assert size < 8 << 20
    assert plain.python("import os; print(os.getuid(), os.getgid())") == "7717 7717"


def test_the_image_names_its_base(plain: Stack) -> None:
    (image,) = json.loads(docker("image", "inspect", plain.environment["TMEM_IMAGE"]))
    assert image["Config"]["Labels"]["org.opencontainers.image.base.name"].startswith("python:3")


def test_what_runs_is_of_the_lock(plain: Stack) -> None:
    listed = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}'.lower() for d in m.distributions()))"
    locked = {line.split()[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    installed = {each.replace("_", "-") for each in plain.python(listed).split()}
    assert {each for each in installed if not each.startswith("tmem==")} == locked


def test_prometheus_scrapes(plain: Stack) -> None:
    assert until(lambda: plain.query("up == 1 and on (job, instance) tmem_build_info"))


def test_prometheus_has_the_rules(plain: Stack) -> None:
    def evaluated() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [each for group in plain.prometheus("rules")["groups"] for each in group["rules"]]
        return found if found and all(each["health"] == "ok" for each in found) else []

    assert {each["name"] for each in until(evaluated) or ()} == {each.get("alert") or each["record"] for each in RULES}


def test_promtool_of_that_prometheus_passes_the_tests_of_the_rules(plain: Stack) -> None:
    mount = f"{DEPLOY / 'prometheus'}:/tested:ro"
    run = ("run", "--rm", "--no-deps", "-T", "--volume", mount, "--env", "TMPDIR=/prometheus")
    promtool = (*run, "--entrypoint", "promtool", "prometheus")
    plain.compose(*promtool, "check", "config", "/tested/prometheus.yml")
    plain.compose(*promtool, "test", "rules", "/tested/tests/alerts.yml")


def stop_and_start(stack: Stack) -> None:
    stack.compose("stop")
    stack.compose("start")


def down_and_up(stack: Stack) -> None:
    stack.compose("down")
    stack.compose("up", "--detach", "--wait")


def kill_and_start(stack: Stack) -> None:
    stack.compose("kill", "tmemd")
    stack.compose("start", "tmemd")


def restart_the_engine(_: Stack) -> None:
    restart = os.environ.get("TMEM_ENGINE_RESTART")
    if not restart:
        pytest.skip("TMEM_ENGINE_RESTART does not say how the engine is restarted")
    subprocess.run(restart, shell=True, check=True)
    assert until(lambda: docker("info", check=False))


LIVED_THROUGH: dict[str, Callable[[Stack], object]] = {
    "upgrade": lambda stack: stack.compose("up", "--build", "--detach", "--force-recreate", "tmemd"),
    "restart": lambda stack: stack.compose("restart"),
    "docker restart": lambda stack: docker("restart", stack.container("tmemd")),
    "stop, start": stop_and_start,
    "down, up": down_and_up,
    "kill, start": kill_and_start,
    "the engine": restart_the_engine,
}


@pytest.mark.parametrize("what", LIVED_THROUGH)
def test_persistent_pages_live_through(plain: Stack, what: str) -> None:
    pool = what.replace(" ", "-").replace(",", "")
    assert plain.python(PUT, pool) == str(PAGES)
    before = plain.inspect("tmemd")["State"]["StartedAt"]
    LIVED_THROUGH[what](plain)
    plain.healthy("tmemd")
    assert plain.inspect("tmemd")["State"]["StartedAt"] != before
    assert plain.python(COUNT, pool) == str(PAGES)


def test_the_documented_container_keeps_its_pages_through_a_restart(plain: Stack) -> None:
    """The command of operations.md, with another name, port, image and folder."""
    text = (ROOT / "docs" / "operations.md").read_text().split("<!-- run by tests/deploy -->")[1]
    command = text.split("```")[1].removeprefix("sh\n").replace("\\\n", " ")
    name, other = f"{plain.name}-alone", {"/dev/shm:": f"{plain.shm}:", "ARENA=/dev/shm/tmem": "ARENA=/dev/shm/alone"}
    other |= {"--name tmemd": f"--name {name}", "7717:7717": "0:7717", "tmem:local": plain.environment["TMEM_IMAGE"]}
    for old, new in other.items():
        assert old in command
        command = command.replace(old, new)
    run = shlex.split(command)[1:]
    python = ("exec", name, "python", "-c")
    serves = f"{name} does not serve"
    probe = ("exec", name, "python", "-m", "tmemd.probe")
    try:
        docker(*run)
        assert until(lambda: _succeeds(*probe)), serves
        assert docker(*python, PUT, "alone").strip() == str(PAGES)
        docker("restart", name)
        assert until(lambda: _succeeds(*probe)), serves
        assert docker(*python, COUNT, "alone").strip() == str(PAGES)
        docker("rm", "--force", name)
        docker(*run)
        assert until(lambda: _succeeds(*probe)), serves
        assert docker(*python, COUNT, "alone").strip() == str(PAGES)
    finally:
        docker("rm", "--force", name, check=False)


def _succeeds(*arguments: str) -> bool:
    return subprocess.run(["docker", *arguments], capture_output=True, check=False).returncode == 0


def test_the_demo_makes_load_and_no_alert(plain: Stack) -> None:
    plain.compose("--profile", "demo", "up", "--detach")
    assert until(lambda: plain.query('rate(tmem_put_stored_pages_total{pool="demo-swap"}[1m]) > 0'))
    assert until(lambda: plain.query("min(count_over_time(tmem_pages[5m])) >= 4"))
    # What was done to it before makes these two rightly.
    assert plain.query('ALERTS{alertname!~"TmemDown|TmemRestarting"}') == []


def test_grafana_has_the_dashboard(plain: Stack) -> None:
    """Only what its stand-ins answer too: its health. The dashboard lies where its provisioning says."""
    port = plain.environment["GRAFANA_PORT"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health") as answered:
        assert answered.status == 200
    assert "tmem.json" in plain.compose("exec", "-T", "grafana", "ls", "/var/lib/tmem/dashboards")
