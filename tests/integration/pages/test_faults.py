"""Delays and errors on purpose, from the start and at run time; and a client that lives with them."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

import tmem
from tests.lib.daemon import OID, Client, Daemon, daemon
from tests.lib.support import PATIENCE, page
from tmem_proto.v1 import admin_pb2 as pb
from tmem_proto.v1 import tmem_pb2

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ABORTED = grpc.StatusCode.ABORTED.value[0]


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--inject") as running:
        yield running


@pytest.fixture
def client(running: Daemon, request: pytest.FixtureRequest) -> Iterator[Client]:
    client = Client(running.address)
    client.open(request.node.name[:64])
    yield client
    inject(client)
    client.close()


def inject(client: Client, *injections: pb.Injection) -> list[pb.Injection]:
    return list(client.admin.Inject(pb.InjectRequest(injections=injections), timeout=PATIENCE).before)


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


def exchange(client: Client, *commands: tmem_pb2.Command) -> list[tmem_pb2.Reply]:
    return list(client.tmem.Exchange(iter(commands), timeout=PATIENCE))


def test_the_call_is_refused_unless_the_daemon_was_started_to_allow_it() -> None:
    with daemon() as strict:
        client = Client(strict.address)
        with pytest.raises(grpc.RpcError) as caught:
            inject(client, pb.Injection(method="Put", code=ABORTED))
        assert code_of(caught.value) == grpc.StatusCode.FAILED_PRECONDITION
        client.open()
        assert client.put({1: page(1)})
        client.close()
        assert "ON PURPOSE" not in strict.said


def test_flags_inject_from_the_start() -> None:
    flags = ("--inject=Get:code=ABORTED;Has:delay=1ms", "--inject=Put:code=UNAVAILABLE,after")
    with daemon(*flags) as failing:
        assert "DELAYED OR FAILED ON PURPOSE" in failing.said
        client = Client(failing.address)
        client.open()
        with pytest.raises(grpc.RpcError) as caught:
            client.get([1])
        assert code_of(caught.value) == grpc.StatusCode.ABORTED
        before = inject(client)
        assert [(one.method, one.code, one.delay_ms, one.after) for one in before] == [
            ("Get", ABORTED, 0, False),
            ("Has", 0, 1, False),
            ("Put", UNAVAILABLE.value[0], 0, True),
        ]
        assert client.get([1]) == {}
        client.close()


@pytest.mark.parametrize(
    ("text", "why"), [("Putt:delay=1s", "injected into 'Putt'"), ("Put:code=WRONG", "code is 'WRONG'")]
)
def test_a_flag_that_makes_no_sense_is_refused(text: str, why: str) -> None:
    command = [sys.executable, "-m", "tmemd", f"--inject={text}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 2
    assert why in ended.stderr
    assert "Traceback" not in ended.stderr


def test_settings_with_injections_print_as_a_file_that_reads_back() -> None:
    command = [sys.executable, "-m", "tmemd", "--print-config", "--inject=Put:delay=1.5s,fraction=0.1;Get:code=ABORTED"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    assert 'inject = ["Put:delay=1500ms,fraction=0.1", "Get:code=ABORTED"]' in shown.splitlines()


def test_a_failed_put_changes_nothing_and_one_whose_reply_is_lost_is_there(client: Client) -> None:
    client.put({1: page(1)})
    for after, held in ((False, page(1)), (True, page(2))):
        inject(client, pb.Injection(method="Put", code=UNAVAILABLE.value[0], after=after))
        with pytest.raises(grpc.RpcError) as caught:
            client.put({1: page(2)})
        assert code_of(caught.value) == UNAVAILABLE
        assert client.get([1]) == {1: held}


def test_a_call_is_delayed(client: Client) -> None:
    inject(client, pb.Injection(method="Put", delay_ms=150))
    start = time.monotonic()
    client.put({1: page(1)})
    assert time.monotonic() - start >= 0.15
    inject(client, pb.Injection(method="Put", delay_ms=20_000))
    with pytest.raises(grpc.RpcError) as caught:
        client.tmem.Put(client.put_request({1: page(2)}), timeout=0.05)
    assert code_of(caught.value) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.get([1]) == {1: page(1)}


def test_commands_of_a_stream_fail_alone(client: Client) -> None:
    inject(client, pb.Injection(method="Exchange.put", code=ABORTED, after=True))
    put = tmem_pb2.Command(id=1, put=client.put_request({1: page(1)}))
    get = tmem_pb2.Command(id=2, get=client.get_request([1]))
    failed, found = exchange(client, put, get)
    assert (failed.id, failed.code, failed.WhichOneof("body")) == (1, ABORTED, None)
    assert "injected into Exchange.put" in failed.error
    assert client.pages([1], found.get) == {1: page(1)}


def test_pages_of_an_exclusive_get_whose_reply_was_lost_stay(client: Client) -> None:
    client.put({1: page(1)})
    inject(client, pb.Injection(method="Exchange.get", code=ABORTED, after=True))
    get = tmem_pb2.Command(id=1, get=client.get_request([1], exclusive=True))
    put = tmem_pb2.Command(id=2, put=client.put_request({2: page(2)}))
    lost, stored = exchange(client, get, put)
    assert (lost.code, stored.code) == (ABORTED, 0)
    assert client.get([1]) == {1: page(1)}


def test_all_methods_at_once_spare_the_call_that_ends_it(client: Client) -> None:
    inject(client, pb.Injection(method="*", code=ABORTED))
    for call in (lambda: client.get([1]), lambda: client.admin.ListPools(pb.ListPoolsRequest())):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert code_of(caught.value) == grpc.StatusCode.ABORTED
    assert [one.method for one in inject(client)] == ["*"]
    assert client.get([1]) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        pb.Injection(method="Nonsense", code=ABORTED),
        pb.Injection(method="Put"),
        pb.Injection(method="Put", code=99),
        pb.Injection(method="Put", after=True, delay_ms=1),
        pb.Injection(method="Put", delay_ms=1 << 31),
        pb.Injection(method="Put", code=ABORTED, fraction=float("nan")),
        pb.Injection(method="Put", code=ABORTED, fraction=-1),
    ],
    ids=lambda wrong: str(wrong).replace("\n", " "),
)
def test_injections_that_make_no_sense_change_nothing(client: Client, wrong: pb.Injection) -> None:
    inject(client, pb.Injection(method="Flush", delay_ms=1))
    with pytest.raises(grpc.RpcError) as caught:
        inject(client, pb.Injection(method="Put", code=ABORTED), wrong)
    assert code_of(caught.value) == grpc.StatusCode.INVALID_ARGUMENT
    assert [one.method for one in inject(client)] == ["Flush"]


def test_injected_failures_are_counted_as_what_they_look_like(client: Client) -> None:
    before = client.admin.Stats(pb.StatsRequest()).daemon["calls"]
    inject(client, pb.Injection(method="Put", code=grpc.StatusCode.INTERNAL.value[0]))
    with pytest.raises(grpc.RpcError):
        client.put({1: page(1)})
    assert client.admin.Stats(pb.StatsRequest()).daemon["calls"] >= before + 3


def test_with_lost_replies_nothing_lands_late_and_every_acknowledged_page_is_right(
    running: Daemon, client: Client
) -> None:
    """Threads share a pool, so that each epoch asked for drops the others' mutations under way."""
    workers, rounds, indices = 4, 12, range(40)
    wrong: list[tuple[int, int]] = []

    with tmem.connect(running.address) as store, tmem.connect(running.address) as watching:
        pool = store.pool("lossy")
        seen = watching.pool("lossy")
        inject(
            client,
            pb.Injection(method="*", code=UNAVAILABLE.value[0], after=True, fraction=0.15),
            pb.Injection(method="*", delay_ms=10, fraction=0.2),
        )

        def work(oid: int) -> None:
            for version in range(1, rounds + 1):
                outcomes = pool.put(oid, {index: page(oid * 1000 + version) for index in indices})
                if not all(outcome.stored for outcome in outcomes.values()):
                    wrong.append((oid, version))
                held = seen.get(oid, indices)
                if held != dict.fromkeys(indices, page(oid * 1000 + version)):
                    wrong.append((oid, version))

        threads = [threading.Thread(target=work, args=(oid,)) for oid in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        inject(client)
        counted = store.client_stats()
        last = {oid: seen.get(oid, indices) for oid in range(workers)}
    assert wrong == []
    assert last == {oid: dict.fromkeys(indices, page(oid * 1000 + rounds)) for oid in range(workers)}
    assert counted.new_epochs > 0
    assert counted.retries > 0


def test_the_session_of_a_raw_client_survives_an_injected_epoch(client: Client) -> None:
    """NewEpoch carried out, its reply lost: the epoch has begun, and what is of the old one is dropped."""
    inject(client, pb.Injection(method="NewEpoch", code=UNAVAILABLE.value[0], after=True))
    with pytest.raises(grpc.RpcError):
        client.tmem.NewEpoch(tmem_pb2.NewEpochRequest(session_id=client.session.id))
    assert client.put({1: page(1)}) == bytes([tmem_pb2.PUT_OUTCOME_STALE])
    inject(client)
    client.session.epoch = client.tmem.NewEpoch(tmem_pb2.NewEpochRequest(session_id=client.session.id)).epoch
    assert client.session.epoch == 3
    assert client.put({1: page(1)}, OID) == bytes([tmem_pb2.PUT_OUTCOME_STORED])
