"""What a scrape says, beside what the store itself says; what scrapes cost; that no pool adds series without bound."""

import platform
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, suppress

import pytest

import tmemd
from tests.lib.daemon import Client, Daemon, daemon
from tests.lib.exposition import Samples, families, samples, text
from tests.lib.support import PATIENCE, filled, noise, page
from tmem_proto.v1 import admin_pb2 as pb
from tmemd.telemetry.store_metrics import CLASSES, POOL, SIZE_BUCKETS, SPLIT, STORE


def labels(pool: str, kind: str, owner: str, **more: str) -> frozenset[tuple[str, str]]:
    return frozenset({("pool", pool), ("kind", kind), ("client", owner), *more.items()})


def use(client: Client) -> pb.PoolStats:
    """Use a pool of the client `me` in every way, and a quota; its statistics."""
    client.open("measured", kind="ephemeral", inclusive=True, quota=1 << 20, allocator="zsmalloc", owner="me")
    for first in range(0, 600, 100):
        client.put({index: noise(index) for index in range(first, first + 100)})
    client.put({1: page(1), 2: page(2), 3: filled(b"\0" * 8)})
    client.put({1: page(2)})
    client.get([1, 2, 3, 9999])
    client.admin.Freeze(pb.FreezeRequest(pool="measured"))
    client.put({2: page(7)})
    client.admin.Thaw(pb.ThawRequest(pool="measured"))
    return client.admin.GetPool(pb.GetPoolRequest(name="measured")).pool.stats


def test_a_scrape_agrees_with_the_pool(client: Client, running: Daemon) -> None:
    stats = use(client)
    found = samples(running.metrics_url)
    own = {"uncompressed_bytes": stats.values["pages"] * 4096, "quota": 1 << 20, "weight": 1, "frozen": 0}
    expected = {**stats.values, **own}
    for name, _, key in POOL:
        assert found[name, labels("measured", "ephemeral", "me")] == expected[key], name
    for name, _, label, values, prefix in SPLIT:
        for value in values:
            at = labels("measured", "ephemeral", "me", **{label: value})
            assert found[name, at] == expected[prefix + value], (name, value)
    assert expected["refused_frozen"] == expected["puts_old_flushed"] == 1
    assert expected["evicted_quota"] > 0


def test_causes_sum_to_the_total(client: Client, running: Daemon) -> None:
    stats = use(client)
    found = samples(running.metrics_url)
    causes = [
        value
        for (name, at), value in found.items()
        if name == "tmem_evicted_pages_total" and ("pool", "measured") in at
    ]
    assert sum(causes) == stats.values["evicted_pages"] > 0


def test_a_scrape_agrees_with_the_store(client: Client, running: Daemon) -> None:
    use(client)
    found = samples(running.metrics_url)
    stats = client.admin.Stats(pb.StatsRequest()).store
    for name, _, key in STORE:
        if key != "lock_waits":
            assert found[name, frozenset()] == stats[key], name
    assert found["tmem_accept_threshold_ratio", frozenset()] == 0.9


def test_no_statistic_of_the_engine_is_left_out(client: Client) -> None:
    stats = use(client)
    shown = {key for _, _, key in (*STORE, *POOL)} | {
        prefix + value for *_, values, prefix in SPLIT for value in values
    }
    sums = {"evicted_pages", "corrupt_pages"}  # of pools and causes, which are shown
    assert {*stats.values, *client.admin.Stats(pb.StatsRequest()).store} - shown == sums
    assert {key for _, _, key in CLASSES} <= {field.name for field in pb.SizeClass.DESCRIPTOR.fields}


def test_sizes_are_a_histogram_of_shares_of_a_page(client: Client, running: Daemon) -> None:
    stats = use(client)
    found = samples(running.metrics_url)
    for bucket in range(1, SIZE_BUCKETS + 1):
        at = labels("measured", "ephemeral", "me", le=str(bucket / SIZE_BUCKETS))
        assert found["tmem_stored_size_ratio_bucket", at] == sum(stats.size_histogram[: bucket * 4])
    everything = labels("measured", "ephemeral", "me", le="+Inf")
    assert found["tmem_stored_size_ratio_bucket", everything] == stats.values["puts_stored"]


def test_what_a_pool_was_made_with(client: Client, running: Daemon) -> None:
    use(client)
    made = labels("measured", "ephemeral", "me", codec="lz4", allocator="zsmalloc", page_size="4096", gets="keep")
    assert samples(running.metrics_url)["tmem_pool_info", made] == 1


def test_calls_bytes_and_builds(client: Client, running: Daemon) -> None:
    use(client)
    found = samples(running.metrics_url)
    build = frozenset({("version", tmemd.__version__), ("python", platform.python_version())})
    assert found["tmem_build_info", build] == 1
    assert found["tmem_calls_total", frozenset({("method", "Put"), ("code", "OK")})] >= 2
    assert found["tmem_calls_total", frozenset({("method", "Put"), ("code", "INTERNAL")})] == 0
    assert found["tmem_call_seconds_count", frozenset({("method", "Get")})] >= 1
    assert found["tmem_received_page_bytes_total", frozenset({("encoding", "raw")})] >= 600 * 4096
    assert found["tmem_sent_page_bytes_total", frozenset({("encoding", "lz4")})] == 0
    assert found["process_resident_memory_bytes", frozenset()] > 1 << 20


def test_the_exposition_keeps_prometheus_rules(client: Client, running: Daemon) -> None:
    use(client)
    found = families(running.metrics_url)
    assert len({family.name for family in found}) == len(found)
    for family in found:
        assert family.documentation
        assert family.name.startswith(("tmem_", "process_"))
        assert family.type in {"counter", "gauge", "histogram"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing(client: Client, running: Daemon) -> None:
    use(client)
    command = ["promtool", "check", "metrics", "--extended"]
    body = text(running.metrics_url)
    checked = subprocess.run(command, input=body, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_store_that_keeps_nothing_has_the_same_metrics(client: Client, running: Daemon) -> None:
    use(client)
    with daemon("--store=null") as null:
        other = Client(null.address)
        other.open()
        other.put({1: page(1)})
        other.get([1])
        names = {family.name for family in families(null.metrics_url)}
        assert names == {family.name for family in families(running.metrics_url)}
        other.close()


def test_those_who_send_a_byte_now_and_then_do_not_keep_the_metrics_from_others() -> None:
    """As many as are served at once never finish what they ask for, and never rest."""
    with daemon() as running, ExitStack() as stack:
        host, _, port = running.metrics_url.split("/")[2].rpartition(":")
        slow = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(16)]
        give_up_at = time.monotonic() + PATIENCE
        served = False
        while not served:
            assert time.monotonic() < give_up_at
            for one in slow:
                with suppress(OSError):
                    one.sendall(b"G")
            with suppress(OSError):
                served = "tmem_pages" in text(running.metrics_url)
            time.sleep(0.05)


def series(found: Samples, prefix: str = "tmem_") -> int:
    return sum(name.startswith(prefix) for name, _ in found)


def test_pools_add_a_bounded_number_of_series() -> None:
    """A hundred pools with pages of many sizes: size classes are summed over them, and a scrape stays cheap."""
    pages = {index: noise(index)[: 256 * index].ljust(4096, b".") for index in range(16)}
    with daemon("--shards=1", memory="256MiB") as running:
        client = Client(running.address)
        client.open("pool 0")
        client.put(pages)
        one = samples(running.metrics_url)
        for number in range(1, 100):
            client.open(f"pool {number}")
            client.put(pages)
        hundred = samples(running.metrics_url)
        assert series(one, "tmem_class") == series(hundred, "tmem_class") >= 3 * 10
        assert (series(hundred) - series(one)) / 99 <= 60
        start = time.perf_counter()
        text(running.metrics_url)
        assert time.perf_counter() - start < 5
        client.close()
