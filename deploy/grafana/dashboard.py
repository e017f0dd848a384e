"""The dashboard's JSON, made of panels.yml: `make dashboard`.

Places and numbers of panels follow from their order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
HEIGHT = {"stat": 4, "timeseries": 8, "bargauge": 8}
_ALL = 'job=~"$job",instance=~"$instance"'
_SHORT = {
    "<all>": _ALL,
    "<pool>": _ALL + ',client=~"$client",pool=~"$pool"',
    "<rate>": "[$__rate_interval]",
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": "tmem",
        "title": "tmem",
        "tags": ["tmem"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": _panels(yaml.safe_load((Path(__file__).parent / "panels.yml").read_text())),
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    chosen = (
        ("job", "Job", "label_values(tmem_build_info, job)"),
        ("instance", "Daemon", 'label_values(tmem_build_info{job=~"$job"}, instance)'),
        ("client", "Client", f"label_values(tmem_pages{{{_ALL}}}, client)"),
        ("pool", "Pool", f'label_values(tmem_pages{{{_ALL},client=~"$client"}}, pool)'),
    )
    everything = {"text": ["All"], "value": ["$__all"]}
    options = {"type": "query", "refresh": 2, "sort": 1, "multi": True, "includeAll": True}
    # All daemons are those that Prometheus knows to be of tmem: others have metrics of the same names, such as `up`.
    return [source] + [
        {**options, "name": name, "label": label, "query": query, "datasource": SOURCE, "current": everything}
        | ({"allValue": ".*"} if name in ("client", "pool") else {})
        for name, label, query in chosen
    ]


def _panels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        made.append(_placed({"type": "row", "title": row["row"], "collapsed": False}, made, (0, y, COLUMNS, 1)))
        x, y, height = 0, y + 1, 0
        for panel in row["panels"]:
            width = panel.get("width", 8)
            if x + width > COLUMNS:
                x, y = 0, y + height
            height = HEIGHT[panel.get("kind", "timeseries")]
            made.append(_placed(_panel(panel), made, (x, y, width, height)))
            x += width
        y += height
    return made


def _placed(panel: dict[str, Any], before: list[dict[str, Any]], at: tuple[int, int, int, int]) -> dict[str, Any]:
    return {"id": len(before) + 1, **panel, "gridPos": dict(zip(("x", "y", "w", "h"), at, strict=True))}


def _panel(panel: dict[str, Any]) -> dict[str, Any]:
    kind = panel.get("kind", "timeseries")
    return {
        "type": kind,
        "title": panel["title"],
        "description": panel["about"],
        "datasource": SOURCE,
        "fieldConfig": {"defaults": _defaults(panel, kind), "overrides": []},
        "options": _options(kind),
        "targets": [_target(at, query, kind) for at, query in enumerate(panel["queries"])],
    }


def _defaults(panel: dict[str, Any], kind: str) -> dict[str, Any]:
    good, bad = {"color": "green", "value": None}, {"color": "red", "value": None}
    steps: list[dict[str, Any]] = [bad if "best" in panel else good]
    if "worst" in panel:
        steps.append({**bad, "value": panel["worst"]})
    if "best" in panel:
        steps.append({**good, "value": panel["best"]})
    defaults = {"unit": panel["unit"], "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if "most" in panel:
        defaults["max"] = panel["most"]
    if "words" in panel:
        options = {str(value): {"text": text} for value, text in panel["words"].items()}
        defaults["mappings"] = [{"type": "value", "options": options}]
    if "nothing" in panel:
        defaults["noValue"] = panel["nothing"]
    if kind == "timeseries":
        stacked = panel.get("stacked", False)
        stacking = {"mode": "normal" if stacked else "none"}
        defaults["custom"] = {"fillOpacity": 20 if stacked else 0, "showPoints": "never", "stacking": stacking}
    return defaults


def _target(at: int, query: dict[str, str], kind: str) -> dict[str, Any]:
    expr = query["expr"]
    for short, full in _SHORT.items():
        expr = expr.replace(short, full)
    common = {"refId": chr(ord("A") + at), "datasource": SOURCE, "instant": kind != "timeseries"}
    return {**common, "expr": expr, "legendFormat": query["legend"]}


def _options(kind: str) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    options: dict[str, dict[str, Any]] = {
        "stat": {"reduceOptions": last, "graphMode": "none", "colorMode": "value"},
        "bargauge": {"reduceOptions": last, "orientation": "vertical", "displayMode": "basic"},
        "timeseries": {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"displayMode": "list"}},
    }
    return options[kind]


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
