"""Exports are made and removed while the server is killed with -9: what was acknowledged is so, nothing half done.

A sixth of `TMEM_KILLS` (30) is how often it is killed.
"""

from __future__ import annotations

import os
import random
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc

from tests.block.lib.stream import PATIENCE
from tests.lib.daemon import Client as Admin
from tests.lib.daemon import Daemon
from tmem_proto.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

KILLS = max(int(os.environ.get("TMEM_KILLS", "30")) // 6, 1)
SIZE = 1 << 20


class Table:
    """Exports that are made and removed all the time, one after the other."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.under_way = ""
        self.made = 0

    def use(self, admin: Admin) -> None:
        """Make and remove exports until the server is gone."""
        with suppress(grpc.RpcError):
            while True:
                self.under_way = f"made{self.made}"
                self.made += 1
                request = pb.CreateExportRequest(name=self.under_way, size=SIZE, reserve=1 << 20)
                admin.admin.CreateExport(request, timeout=PATIENCE)
                self.there.add(self.under_way)
                admin.admin.RemoveExport(pb.RemoveExportRequest(name=self.under_way), timeout=PATIENCE)
                self.there.discard(self.under_way)

    def check(self, admin: Admin) -> None:
        """What was acknowledged is so; what was under way is done or not, and nothing is left of it half done."""
        listed = {one.name: one for one in admin.admin.ListExports(pb.ListExportsRequest(), timeout=PATIENCE).exports}
        made = listed.keys()
        assert made - {self.under_way} == self.there - {self.under_way}
        assert all(listed[name].reserve == 1 << 20 for name in made)
        pools = [one.name for one in admin.admin.ListPools(pb.ListPoolsRequest(), timeout=PATIENCE).pools]
        assert sorted(name for name in pools if name != ".exports") == sorted(f"export/{name}" for name in listed)
        for name in made:
            admin.admin.RemoveExport(pb.RemoveExportRequest(name=name), timeout=PATIENCE)
        self.there.clear()


def test_exports_are_made_and_removed_whole(tmp_path: Path) -> None:
    flags = (f"--arena={tmp_path}/arena", f"--nbd=unix:{tmp_path}/sock", "--threads=2")
    table, dice = Table(), random.Random(1)
    for _ in range(KILLS + 1):
        daemon = Daemon(*flags)
        try:
            admin = Admin(daemon.address)
            table.check(admin)
            maker = threading.Thread(target=table.use, args=(admin,))
            maker.start()
            killer = threading.Timer(dice.uniform(0.02, 0.2), daemon.process.kill)
            killer.start()
            maker.join()
            killer.join()
        finally:
            daemon.kill()
        admin.close()
    assert table.made > KILLS
