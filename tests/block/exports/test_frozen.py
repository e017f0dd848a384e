"""`tmem pool freeze` of an export's pool: its client's changes wait, reads go on, and the daemon ends as ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd, Err
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.support import page

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def test_a_freeze_of_an_export_fails_no_write_and_outlasts_a_restart(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/nbd"
    flags = (f"--arena={tmp_path}/arena", f"--nbd={address}")
    old, new = page(1) * 100, page(2)
    with daemon(*flags) as running:
        cli = Command(running.address)
        cli("export", "create", "disk", "--size=1MiB")
        with opened(address, "disk") as client:
            client.write(0, old)
            assert "wait" in cli("pool", "freeze", "export/disk")
            for block in range(50):
                client.submit(Cmd.WRITE, block * 4096, 4096, data=new)
            assert client.read(0, len(old)) == old
            assert running.stop() == 0
    with daemon(*flags) as running, opened(address, "disk") as client:
        assert client.read(0, len(old)) == old
        writes = [client.submit(Cmd.WRITE, block * 4096, 4096, data=new) for block in range(50)]
        trim = client.submit(Cmd.TRIM, 60 * 4096, 4096)
        assert client.read(0, len(old)) == old
        Command(running.address)("pool", "thaw", "export/disk")
        assert [client.answer(cookie).error for cookie in (*writes, trim)] == [Err.OK] * 51
        assert client.read(0, len(old)) == new * 50 + old[50 * 4096 : 60 * 4096] + bytes(4096) + old[61 * 4096 :]
