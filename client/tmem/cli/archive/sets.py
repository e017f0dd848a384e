"""Saves of all persistent pools of a store, in a folder: sets, one of each run.

    FOLDER/2026-11-30T23-45-00.123Z/      a set, by the time of its begin
        export%2Fswap0.tmem               a saved pool, its name as in a URL
        manifest.json                     what the set has and what could not be saved: written last, so a set without
                                          one was not finished

One run at a time makes or removes sets of a folder. Old ones go only once a set is there that lacks nothing, and only
files that are a set's.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import tmem
from tmem.cli.base import text
from tmem.cli.base.failures import Failed
from tmem.cli.base.output_file import PRIVATE, sync, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tmem.cli.archive.restore import Restored
    from tmem.cli.archive.save import Saved
    from tmem.cli.base.session import Session
    from tmem.cli.base.target import PoolView

_MANIFEST = "manifest.json"
_SUFFIX = ".tmem"
_SET = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z")


def save_all(session: Session, folder: Path, keep: int | None, save: Callable[[PoolView, str], Saved]) -> None:
    """Save every persistent pool to a new set; one that fails does not stop the others."""
    views = [
        view
        for view in session.target.pools()
        if view.settings["kind"] == "persistent" and not view.name.startswith(".")
    ]
    with _alone(folder):
        made = folder / _name(time.time_ns() // 1_000_000)
        made.mkdir(mode=0o700)
        sync(folder)
        saved, failed = _save_each(session, made, views, save)
        with writing(str(made / _MANIFEST), PRIVATE) as sink:
            manifest = {"tmem": tmem.__version__, "server": session.address, "saved": saved, "failed": failed}
            sink.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode())
        pruned = _prune(session, folder, keep) if keep is not None else []
    if session.output.as_json:
        session.output.document({"folder": str(made), "saved": saved, "failed": failed, "removed": pruned})
    session.output.say(f"saved {text.quantity(len(saved), 'pool')} to {text.printable(str(made))}")
    if pruned:
        session.output.say(f"removed {text.quantity(len(pruned), 'older set')}")
    if failed:
        raise Failed(
            f"{len(failed)} of {text.quantity(len(views), 'pool')} could not be saved completely: {_why(failed)}"
        )


def restore_all(session: Session, folder: Path, restore: Callable[[str], Restored]) -> None:
    """Restore every pool of a set, or of a folder's newest; one that fails does not stop the others."""
    found = _to_restore(folder)
    restored, failed = [], _lacks(found)
    for file in _files(found):
        try:
            done = restore(str(file))
            restored.append(asdict(done))
        except (tmem.TmemError, Failed, OSError, ValueError) as error:
            failed.append({"pool": file.name, "why": _says(error)})
    if session.output.as_json:
        session.output.document({"folder": str(found), "restored": restored, "failed": failed})
    session.output.say(f"restored {text.quantity(len(restored), 'pool')} of {text.printable(str(found))}")
    if failed:
        raise Failed(f"{text.quantity(len(failed), 'pool')} could not be restored completely: {_why(failed)}")


def _save_each(
    session: Session, made: Path, views: list[PoolView], save: Callable[[PoolView, str], Saved]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    saved, failed = [], []
    for view in views:
        file = made / (quote(view.name, safe="") + _SUFFIX)
        try:
            done = save(view, str(file))
        except tmem.UnknownPoolError:
            session.output.remark(f"pool {text.printable(view.name)!r} was removed meanwhile")
            continue
        except (tmem.TmemError, Failed, OSError) as error:
            failed.append({"pool": view.name, "why": _says(error)})
            continue
        saved.append({"pool": view.name, "file": file.name, **asdict(done)})
        if done.corrupt:
            why = f"{text.quantity(done.corrupt, 'page')} failed their checksum and are missing from the file"
            failed.append({"pool": view.name, "why": why})
    return saved, failed


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder exclusively; create it if missing."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError):  # not on every system
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Failed(f"{folder}: another `tmem save --all` is running there") from None
        yield
    finally:
        os.close(handle)


def _name(milliseconds: int) -> str:
    return f"{time.strftime('%Y-%m-%dT%H-%M-%S', time.gmtime(milliseconds // 1000))}.{milliseconds % 1000:03}Z"


def _sets(folder: Path) -> list[Path]:
    """The sets of a folder, the newest first."""
    return sorted((path for path in folder.iterdir() if _SET.fullmatch(path.name) and path.is_dir()), reverse=True)


def _files(found: Path) -> list[Path]:
    return sorted(path for path in found.glob("*" + _SUFFIX) if path.name != _SUFFIX)


def _manifest(found: Path) -> dict[str, Any] | None:
    """The manifest of a set; None if the set is incomplete."""
    try:
        manifest = json.loads((found / _MANIFEST).read_bytes())
        saved, failed = manifest["saved"], manifest["failed"]
        return {"saved": [str(one["file"]) for one in saved], "failed": [dict(one) for one in failed]}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Failed(
            f"{found / _MANIFEST} is not a valid manifest; restore the files one by one with `tmem restore FILE`"
        ) from None


def _to_restore(folder: Path) -> Path:
    """The folder itself if it has saved pools, else its newest complete set that has any."""
    if _files(folder):
        return folder
    for found in _sets(folder):
        manifest = _manifest(found)
        if manifest is not None and manifest["saved"]:
            return found
    raise Failed(f"{folder} has neither saved pools nor a complete set of them")


def _lacks(found: Path) -> list[dict[str, str]]:
    """The pools that could not be saved to a set, and the files missing from it."""
    manifest = _manifest(found)
    if manifest is None:
        return []
    there = {file.name for file in _files(found)}
    gone = [{"pool": name, "why": "the file is missing"} for name in manifest["saved"] if name not in there]
    return [{"pool": str(one.get("pool")), "why": f"not saved: {one.get('why')}"} for one in manifest["failed"]] + gone


def _prune(session: Session, folder: Path, keep: int) -> list[str]:
    """Remove sets older than the newest `keep` that are complete."""
    removed, whole = [], 0
    for found in _sets(folder):
        if whole >= keep:
            if _remove(found):
                removed.append(found.name)
            else:
                session.output.remark(f"{found} holds other files and was not removed")
            continue
        manifest = _manifest(found)
        whole += manifest is not None and not manifest["failed"]
    return removed


def _remove(found: Path) -> bool:
    files = list(found.iterdir())
    ours = (file.suffix == _SUFFIX or file.name == _MANIFEST or file.name.startswith(".tmem-") for file in files)
    if not all(ours) or any(file.is_dir() for file in files):
        return False
    for file in sorted(files, key=lambda file: file.name != _MANIFEST):  # from then on it is not taken for finished
        file.unlink()
    found.rmdir()
    return True


def _says(error: Exception) -> str:
    if isinstance(error, Failed):
        return error.message
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _why(failed: list[dict[str, str]]) -> str:
    return "; ".join(f"{one['pool']}: {one['why']}" for one in failed)
