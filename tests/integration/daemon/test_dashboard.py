"""Dashboard and alerts beside a daemon in use: they name metrics that exist, and a real Prometheus answers them."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import yaml

import tmem
from deploy import demo
from tests.lib.certificates import Authority
from tests.lib.daemon import Daemon, daemon
from tests.lib.exposition import families
from tests.lib.prometheus import DEPLOY, Prometheus, prometheus
from tests.lib.support import PATIENCE

DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "tmem.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules" / "tmem.yml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
VARIABLES = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
# What Prometheus itself makes of a scrape.
ITS_OWN = {"up"}
LABELS = {
    "pool",
    "kind",
    "client",
    "instance",
    "job",
    "method",
    "code",
    "outcome",
    "reason",
    "cause",
    "encoding",
    "file",
    "export",
}
WORDS = LABELS | {"size", "le", "sum", "min", "max", "rate", "increase", "changes", "histogram_quantile", "time"}
WORDS |= {"count_over_time", "sum_over_time", "present_over_time", "by", "on", "and", "or", "group_left"}

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """In its folder lies what the demo's client needs too."""
    made = Authority(tmp_path_factory.mktemp("authority"))
    client = made.client("demo")
    client.cert.rename(made.file.parent / "demo.pem")
    client.key.rename(made.file.parent / "demo.key")
    return made


@pytest.fixture(scope="module")
def used(authority: Authority) -> Iterator[Daemon]:
    """A daemon that has done a bit of everything."""
    folder = authority.file.parent
    flags = [*authority.flags(authority.server()), "--admins=demo", f"--nbd=unix:{folder / 'nbd.sock'}"]
    with daemon(*flags, memory="128MiB") as running:
        tls = tmem.Tls(ca=authority.file, cert=folder / "demo.pem", key=folder / "demo.key")
        with tmem.connect(running.address, tls=tls) as store:
            store.create_export("swap0", "1MiB")
        use(running, authority, rounds=60)
        yield running


@pytest.fixture(scope="module")
def seen(used: Daemon, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus that has scraped it before and after more use."""
    with prometheus(used.metrics_url.split("/")[2], tmp_path_factory.mktemp("prometheus")) as running:
        assert running.until(lambda: running.query("tmem_build_info"))
        use(used, authority, rounds=60)
        more = "min(count_over_time(tmem_build_info[1m])) >= 4"
        assert running.until(lambda: running.query(more))
        yield running


def use(running: Daemon, authority: Authority, rounds: int) -> None:
    command = [sys.executable, str(DEPLOY / "demo.py"), running.address, f"--tls={authority.file.parent}"]
    subprocess.run([*command, f"--rounds={rounds}"], check=True, timeout=PATIENCE)


def names(expression: str) -> set[str]:
    """The metrics of an expression: its words outside strings and braces that no language or label is made of."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", bare)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - WORDS


def live(running: Daemon) -> set[str]:
    return {sample.name for family in families(running.metrics_url) for sample in family.samples} | ITS_OWN


def test_names_are_told_from_words() -> None:
    expression = 'sum by (pool) (rate(a_total{x="b_total"}[5m])) / on (pool) c:d:e > 0.5 and changes(f[1h]) > 1e3'
    assert names(expression.replace("1e3", "1000")) == {"a_total", "c:d:e", "f"}


@pytest.mark.parametrize(("title", "expression"), QUERIES)
def test_every_metric_of_the_dashboard_exists(used: Daemon, title: str, expression: str) -> None:
    assert names(expression), title
    assert names(expression) <= live(used), title


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_metric_of_the_rules_exists(used: Daemon, rule: dict[str, Any]) -> None:
    assert names(rule["expr"])
    assert names(rule["expr"]) <= live(used) | RECORDED.keys()


def test_every_metric_of_the_daemon_is_on_the_dashboard_or_said_not_to_be(used: Daemon) -> None:
    shown = set().union(*(names(expression) for _, expression in QUERIES))
    left_out = {"tmem_build_info", "tmem_pool_info", "tmem_generation", "tmem_shards", "tmem_pools", "tmem_objects"}
    left_out |= {"tmem_weight"}
    exposed = {name for name in live(used) if name.startswith("tmem_")}
    histograms = {name for name in exposed if name.endswith(("_count", "_sum"))}
    assert exposed - histograms - shown == left_out


def test_variables_are_defined_and_panels_say_what_is_good() -> None:
    for title, expression in QUERIES:
        assert set(re.findall(r"\$(\w+)", expression)) <= VARIABLES, title
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_a_daemon_that_is_down_is_red_and_said_to_be() -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == "Up"]
    defaults = panel["fieldConfig"]["defaults"]
    colours = {step["value"]: step["color"] for step in defaults["thresholds"]["steps"]}
    assert colours == {None: "red", 1: "green"}
    assert defaults["mappings"][0]["options"] == {"0": {"text": "down"}, "1": {"text": "up"}}
    assert defaults["noValue"] == "no daemon"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_no_expression_asks_for_one_name_of_a_job(rule: dict[str, Any]) -> None:
    assert 'job="' not in rule["expr"]
    assert not [title for title, expression in QUERIES if 'job="' in expression]
    # What is summed or joined by daemon is so by job as well: two jobs may call the same machine the same.
    assert not re.search(r"\((?:instance|pool|method)", rule["expr"])


def test_every_alert_has_a_section_in_the_documents() -> None:
    for rule in RULES:
        if "alert" in rule:
            document, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            headings = re.findall(r"^#+ (.*)$", (DEPLOY.parent / document).read_text(), re.MULTILINE)
            assert (rule["alert"], anchor) == (rule["alert"], rule["alert"].lower())
            assert rule["alert"] in headings


def test_the_demo_makes_no_alert_fire() -> None:
    """Its pools, once they are full, as TmemEvictionStorm, TmemRefusing and TmemNearQuota look at them."""
    with tmem.open(memory="256MiB") as store:
        rounds = demo.rounds(store)
        assert next(islice(rounds, 1500, None), ...) is None
        before = {pool.name: pool.stats() for pool in store.pools()}
        assert next(islice(rounds, 499, None), ...) is None
        for pool in store.pools():
            now, then = pool.stats(), before[pool.name]
            assert now["refused_quota"] == now["refused_memory"] == now["refused_no_space"] == 0
            in_ten_minutes = (now["evicted_pages"] - then["evicted_pages"]) * demo.ROUNDS_A_SECOND * 600 / 500
            assert in_ten_minutes < now["pages"], pool.name
            assert pool.name != "demo-swap" or now["footprint_bytes"] < 0.9 * (pool.quota or 0)


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_dashboard_is_what_its_source_makes() -> None:
    made = subprocess.run([sys.executable, DEPLOY / "grafana" / "dashboard.py"], capture_output=True, check=True)
    assert json.loads(made.stdout) == DASHBOARD, "make it anew: make dashboard"


@needs_prometheus
@pytest.mark.parametrize(("title", "expression"), QUERIES)
def test_prometheus_answers_every_query_with_data(seen: Prometheus, title: str, expression: str) -> None:
    filled = expression.replace("$__rate_interval", "1m")
    for variable in ("job", "instance", "client", "pool"):
        filled = filled.replace(f"${variable}", ".*")
    if 'code!="OK"' in expression:
        assert all(each["value"][1] == "0" for each in seen.query(filled)), "nothing has failed"
        return
    series = seen.until(lambda: seen.query(filled))
    assert series, title
    assert all(each["value"][1] != "NaN" for each in series) or "quantile" in expression, title


@needs_prometheus
def test_prometheus_evaluates_every_rule(seen: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = seen.get("/api/v1/rules")["groups"]
        found: list[dict[str, Any]] = [rule for group in groups for rule in group["rules"]]
        return found if all(rule["health"] == "ok" for rule in found) else []

    found = seen.until(rules)
    assert found
    assert {rule["name"] for rule in found} == {rule.get("alert") or rule["record"] for rule in RULES}
    assert [rule["name"] for rule in found if rule.get("state") == "firing"] == []
    for record in RECORDED:
        assert seen.until(lambda record=record: seen.query(record)), record  # type: ignore[misc]


@needs_prometheus
def test_prometheus_takes_the_exposition_whole(seen: Prometheus) -> None:
    target = seen.get("/api/v1/targets")["activeTargets"][0]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert seen.query("scrape_samples_scraped == scrape_samples_post_metric_relabeling")
    types = seen.get("/api/v1/metadata")
    ours = {name: entries[0] for name, entries in types.items() if name.startswith("tmem_")}
    assert {entry["type"] for entry in ours.values()} <= {"counter", "gauge", "histogram", "info"}
    assert all(entry["help"] for entry in ours.values())


@needs_promtool
def test_promtool_accepts_configuration_and_rules() -> None:
    command = ["promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_the_alerts_fire_when_they_should_and_not_before() -> None:
    tests = sorted(map(str, (DEPLOY / "prometheus" / "tests").glob("*.yml")))
    checked = subprocess.run(
        ["promtool", "test", "rules", *tests], capture_output=True, text=True, check=False, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_tested() -> None:
    alerts = {rule["alert"] for rule in RULES if "alert" in rule}
    tested: set[str] = set()
    silent: set[str] = set()
    for path in (DEPLOY / "prometheus" / "tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                (tested if case["exp_alerts"] else silent).add(case["alertname"])
    assert tested == silent == alerts
