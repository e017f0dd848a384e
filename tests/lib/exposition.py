"""The metrics of a running daemon, as Prometheus would read them."""

import urllib.request

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.lib.support import PATIENCE

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        body: str = response.read().decode()
    return body


def families(url: str) -> list[Metric]:
    return list(text_string_to_metric_families(text(url)))


def samples(url: str) -> Samples:
    """Every sample by its name and labels, each there once."""
    found = [(s.name, frozenset(s.labels.items()), s.value) for family in families(url) for s in family.samples]
    by_name = {(name, labels): value for name, labels, value in found}
    assert len(by_name) == len(found)
    return by_name
