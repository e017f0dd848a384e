"""Which bytes a file has, as a key: what was once found under it is right for as long as the file has it.

An **identity** is what `fstat` says of the open file: inode, size, mtime and ctime. The key is a hash of it, of the
inode's generation where the file system tells it, and of the **volume**. Every change of a file's bytes gives it a new
ctime, which nobody can set; but two changes within one tick of the clock that stamps them get the same one. So an
identity says nothing until it is **settled**: until every later change is sure to be stamped otherwise. The rule:

- Where this machine stamps the file (a local file system), the ctime lies more than `settle` seconds back.
- Else (network, cluster, FUSE and unknown file systems) that and `SKEW` seconds more, as two clocks are compared; or
  this process has seen the identity for `settle` seconds, which compares none.

`settle` must exceed the granularity of the stamps (2 s on FAT) and the longest write call: a call stamps the file when
it begins and may go on writing. Beyond the rule are changes that leave no stamp: stores through a shared mapping to a
page that is dirty already, a clock set back to the very tick of an older change, a volume written to while unmounted.

The volume that is not named is this boot of this machine with what it knows of the mount, so that neither another host
nor another disk on the same device number ever has the same key. A named volume stands for all that: hosts which mount
one file system the same way (same inode numbers, same stamps) and give it one name share its pages, after a reboot too.
A copy that can be written to, a clone or a snapshot made writable, is another volume and needs another name.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

SKEW = 300.0
"""Seconds by which the clocks of two machines may differ; Kerberos takes as many."""

_STAMPED_HERE = "bcachefs btrfs exfat ext2 ext3 ext4 f2fs hfsplus jfs nilfs2 ntfs3 ramfs tmpfs udf vfat xfs zfs"
# Their files are made up when they are read; no stamp says that they changed.
_MADE_UP = (
    "binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl mqueue nsfs proc pstore resctrl "
    "securityfs selinuxfs sysfs tracefs"
)
_FS_IOC_GETVERSION = 0x80087601
_WHERE_UNKNOWN = uuid.uuid4().hex


class Identity(NamedTuple):
    """What `fstat` says of a file's bytes."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file lies, found once when it is opened.

    Attributes:
        key: The volume and the inode's generation.
        local: This machine's clock stamps the file.
        cacheable: The stamps tell when the file changes.
    """

    key: bytes
    local: bool
    cacheable: bool

    def oid(self, identity: Identity) -> bytes:
        """The key of the file's bytes."""
        content = repr(tuple(identity)).encode() + self.key
        return hashlib.blake2b(content, digest_size=24, person=b"tmem file 1").digest()


class SettledRule:
    """Whether identities of one file are settled. Safe to use from many threads."""

    def __init__(
        self,
        settle: float,
        local: bool,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settle = settle
        self._age = settle if local else settle + SKEW
        self._local = local
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._seen: Identity | None = None
        self._since = 0.0

    def __call__(self, identity: Identity) -> bool:
        """Whether whatever changes the file from now on changes this identity, which the file had just now."""
        if self._wall() - identity.ctime_ns / 1e9 > self._age:
            return True
        if self._local:
            return False
        with self._lock:
            now = self._monotonic()
            if identity != self._seen:
                self._seen, self._since = identity, now
            return now - self._since > self._settle


def identify(fd: int) -> Identity:
    """What the open file is now."""
    found = os.fstat(fd)
    return Identity(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def origin(fd: int, volume: str | None) -> Origin:
    """Where the open file lies."""
    kind, source = _mount(fd)
    where = ("named", volume) if volume is not None else ("here", *_here(fd), kind, source)
    return Origin(
        key=repr((where, _generation(fd))).encode("utf-8", "surrogatepass"),
        local=kind in _STAMPED_HERE.split(),
        cacheable=os.name == "posix" and kind not in _MADE_UP.split(),
    )


def _here(fd: int) -> tuple[str, int, int, str]:
    """What tells this volume from any other that this or another machine ever mounts."""
    device = os.fstat(fd).st_dev
    boot = _read("/proc/sys/kernel/random/boot_id") or _WHERE_UNKNOWN
    try:
        uuid_part = os.fstatvfs(fd).f_fsid
    except (AttributeError, OSError):
        uuid_part = 0
    block = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}" if hasattr(os, "major") else ""
    # A device number is used again for another disk; the disk's sequence number is not.
    sequence = _read(f"{block}/diskseq") or _read(f"{block}/../diskseq")
    return boot, device, uuid_part, sequence


def _mount(fd: int) -> tuple[str, str]:
    """The type and source of the file system that the file was opened on; empty where they cannot be known."""
    told = dict(line.split(":", 1) for line in _read(f"/proc/self/fdinfo/{fd}").splitlines() if ":" in line)
    number = told.get("mnt_id", "").strip()
    for line in _read("/proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        if number and mount.split(" ", 1)[0] == number:
            kind, source = system.split(" ")[:2]
            return kind, source
    return "", ""


def _generation(fd: int) -> int | None:
    """The number that tells apart the files which had one inode number; None where it is not told."""
    try:
        import fcntl

        return int(struct.unpack("i", fcntl.ioctl(fd, _FS_IOC_GETVERSION, bytes(8))[:4])[0])
    except (ImportError, OSError):
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
