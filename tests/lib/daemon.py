"""A daemon to test with: a process of its own, on a free port, waited for by what it announces."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc

from tests.lib.support import PATIENCE
from tmem_proto.v1 import tmem_pb2 as pb
from tmem_proto.v1.admin_pb2_grpc import TmemAdminStub
from tmem_proto.v1.tmem_pb2_grpc import TmemStub

OID = bytes(range(24))


class Daemon:
    """A running daemon; `within` stands before its command. Started again, it listens where it did."""

    def __init__(self, *flags: str, memory: str = "64MiB", within: Sequence[str] = ()) -> None:
        self.flags = flags
        self.address = "127.0.0.1:0"
        self._memory = memory
        self._within = within
        self.start()

    def start(self) -> None:
        command = [*self._within, sys.executable, "-m", "tmemd", f"--listen={self.address}", "--metrics=127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*command, f"--memory={self._memory}", *self.flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        for line in self.process.stdout:
            self.said += line
            if line.startswith("listening on "):
                break
        else:
            raise AssertionError(self.process.stderr.read())
        self.address = self._said(r"listening on (\S+)")
        more = re.search(r"more workers on (.*)", self.said)
        self.addresses = [self.address, *(more[1].split(", ") if more else ())]
        self.metrics_url = self._said(r"metrics on (\S+)")

    def _said(self, pattern: str) -> str:
        found = re.search(pattern, self.said)
        assert found, self.said
        return found[1]

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self._end()

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def _end(self) -> int:
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode


@contextmanager
def daemon(*flags: str, memory: str = "64MiB") -> Iterator[Daemon]:
    """A daemon that is gone afterwards, and ended well if nobody killed it."""
    running = Daemon(*flags, memory=memory)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            assert running.stop() == 0


class Client:
    """Raw stubs on one connection, and the session of one pool."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.address = address
        # Each client has a connection of its own, as another process would.
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        self.channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self.tmem = TmemStub(self.channel)
        self.admin = TmemAdminStub(self.channel)
        self.session = pb.Session()
        self.page_size = 4096

    def open(self, name: str = "pool", kind: str = "persistent", **settings: object) -> pb.OpenPoolResponse:
        request = pb.OpenPoolRequest(name=name, settings=pb.PoolSettings(kind=kind, **settings))  # type: ignore[arg-type]
        opened = self.tmem.OpenPool(request, timeout=PATIENCE)
        self.session = opened.session
        self.page_size = opened.settings.page_size
        return opened

    def put_request(self, pages: dict[int, bytes], oid: bytes = OID) -> pb.PutRequest:
        return pb.PutRequest(session=self.session, oid=oid, indices=list(pages), pages=b"".join(pages.values()))

    def put(self, pages: dict[int, bytes], oid: bytes = OID) -> bytes:
        return self.tmem.Put(self.put_request(pages, oid), timeout=PATIENCE).outcomes

    def put_blocks(self, blocks: dict[int, bytes], lengths: Sequence[int] | None = None) -> bytes:
        request = self.put_request(blocks)
        request.encoding = pb.ENCODING_LZ4
        request.lengths.extend([len(block) for block in blocks.values()] if lengths is None else lengths)
        return self.tmem.Put(request, timeout=PATIENCE).outcomes

    def get_request(self, indices: Sequence[int], oid: bytes = OID, exclusive: bool = False) -> pb.GetRequest:
        return pb.GetRequest(session=self.session, oid=oid, indices=indices, exclusive=exclusive)

    def get(self, indices: Sequence[int], oid: bytes = OID) -> dict[int, bytes]:
        return self.pages(indices, self.tmem.Get(self.get_request(indices, oid), timeout=PATIENCE))

    def pages(self, indices: Sequence[int], response: pb.GetResponse) -> dict[int, bytes]:
        hits = [index for index, found in zip(indices, response.found, strict=True) if found == pb.GET_OUTCOME_HIT]
        size = self.page_size
        assert len(response.pages) == len(hits) * size
        return {index: response.pages[at * size : (at + 1) * size] for at, index in enumerate(hits)}

    def close(self) -> None:
        self.channel.close()
