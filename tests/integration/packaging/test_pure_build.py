"""The SDK without its native part, as `TMEM_PURE=1` builds it, against a daemon of the full installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.lib.daemon import daemon

ROOT = Path(__file__).parents[3]
_FILES = (
    "Cargo.toml",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    "client",
    "proto",
    "server/tmemd",
    "server/engine/python",
)

_STORY = """
import asyncio, sys
sys.modules["tmem_engine"] = None  # an editable installation may have it
import tmem, tmem.aio
assert tmem.__file__.startswith({target!r}), tmem.__file__
for use in (tmem.open, lambda: tmem.connect("shm:///dev/shm/none")):
    try:
        use()
    except tmem.EngineMissingError as error:
        assert "tmem_engine" in str(error)
    else:
        raise SystemExit("no error")
page = bytes(range(256)) * 16
with tmem.connect({address!r}) as store:
    pool = store.pool("swap")
    assert pool.put(1, {{7: page}})[7].stored
    assert pool.get(1, [7, 8]) == {{7: page}}
    assert pool.put_range(2, 0, page * 500).all_stored
    assert pool.get_range(2, 0, 500)[0] == page * 500
async def story():
    async with tmem.aio.connect({address!r}) as store:
        pool = await store.pool("swap")
        assert await pool.get(1, [7]) == {{7: page}}
        assert await pool.flush(1, [7]) == 1
asyncio.run(story())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in _FILES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(out), str(source), TMEM_PURE="1")
    (built,) = out.iterdir()
    return built


def _pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-index", "--no-deps"]
    subprocess.run(command, check=True, env={**os.environ, **environment})


def test_the_wheel_is_for_any_system_and_holds_the_sdk_alone(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"tmem", "tmem_main", "tmem_proto"}
    assert {"tmem/aio.py", "tmem/py.typed", "tmem_proto/v1/tmem.proto", "tmem_proto/v1/tmem_pb2.py"} <= set(names)
    assert not [name for name in names if name.endswith(".so")]
    (scripts,) = (name for name in names if name.endswith("entry_points.txt"))
    assert b"tmemd" not in zipfile.ZipFile(wheel).read(scripts)


def test_it_speaks_to_a_daemon_and_says_what_it_lacks(wheel: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    _pip("install", "--target", target, str(wheel))
    with daemon("--memory", "32MiB") as running:
        script = _STORY.format(target=target, address=running.address)
        environment = {**os.environ, "PYTHONPATH": target}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
