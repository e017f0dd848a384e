"""What is published, from nothing: a source distribution, the wheel that pip builds of it, and a plain installation.

`TMEM_DIST` names a folder with the two made already, as `make dist` does; then each is installed and tried as it is.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tmem
from tests.lib.support import PATIENCE

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parents[3]
_MADE = os.environ.get("TMEM_DIST")
_NOT_SOURCES = shutil.ignore_patterns(
    ".*", "target", "__pycache__", "build", "dist", "*.egg-info", "*.so", "node_modules"
)
_STORY = """
import sys, tmem
with tmem.connect(sys.argv[1]) as store:
    pool = store.pool("swap")
    assert pool.put(1, {7: bytes(range(256)) * 16})[7].stored
    assert pool.get(1, [7, 8]) == {7: bytes(range(256)) * 16}
with tmem.open(memory="8MiB") as store:
    assert store.pool("swap").put(1, {7: bytes(4096)})[7].stored
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of a copy of the sources, by the backend alone."""
    if _MADE:
        return _made("*.tar.gz")
    source, out = tmp_path_factory.mktemp("source") / "tmem", tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, source, ignore=_NOT_SOURCES)
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(out)], cwd=source, check=True, capture_output=True)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip in isolation, of the source distribution alone; what cargo has compiled already is used."""
    if _MADE:
        return _made("*.whl")
    if shutil.which("cargo") is None:
        pytest.skip("there is no cargo")
    out = tmp_path_factory.mktemp("wheel")
    reached = _pip("download", "--no-deps", "--dest", out / "probe", "setuptools-rust", check=False)
    if reached.returncode:
        pytest.skip("pip reaches no package index")
    target = str(ROOT / "target")
    _pip("wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", out / "made", sdist, CARGO_TARGET_DIR=target)
    (built,) = (out / "made").iterdir()
    return built


@pytest.fixture(params=["wheel", "sdist"] if _MADE else ["wheel"])
def published(request: pytest.FixtureRequest) -> Path:
    """What is installed: the source distribution too, where the wheel was not built of it by pip."""
    path: Path = request.getfixturevalue(request.param)
    return path


def _made(pattern: str) -> Path:
    (path,) = Path(_MADE or "").resolve().glob(pattern)
    return path


def _pip(*arguments: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    return subprocess.run(command, check=check, env={**os.environ, **environment}, text=True, timeout=3 * PATIENCE)


def _metadata(text: bytes) -> Message:
    return email.message_from_bytes(text)


def test_the_source_distribution_holds_all_that_is_built_and_tested(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        file = archive.extractfile(f"tmem-{tmem.__version__}/PKG-INFO")
        assert file is not None
        described = _metadata(file.read())
    # What `twine check --strict` asks for.
    assert described["Description-Content-Type"] == "text/markdown"
    assert "# tmem" in str(described.get_payload())
    kinds = ("*.rs", "*.py", "*.toml", "*.proto", "*.pyi", "*.md", "*.yaml", "*.yml")
    here = ("client", "server", "proto", "tests", "docs", "deploy")
    wanted = {str(path.relative_to(ROOT)) for folder in here for kind in kinds for path in (ROOT / folder).rglob(kind)}
    wanted |= {"Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "setup.py"}
    assert not {name for name in wanted - names if "target/" not in name}
    assert not {name for name in names if re.search(r"\.(so|pyc)$|(^|/)target/", name)}


def test_the_native_part_is_stripped_and_asks_for_nothing_newer(wheel: Path, tmp_path: Path) -> None:
    """A symbol without a version would be of a C library that is newer than the tag says."""
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so"))
    assert name == "tmem_engine/_native.abi3.so"
    native = zipfile.ZipFile(wheel).extract(name, tmp_path)
    sections = subprocess.run(["readelf", "--sections", "--wide", native], check=True, capture_output=True, text=True)
    # `make test` shares with other tests a build that keeps line numbers; `make dist` runs this on what is published.
    if _MADE or os.environ.get("SETUPTOOLS_RUST_CARGO_PROFILE") != "release":
        assert not re.findall(r"\.symtab|\.debug\w*", sections.stdout)
    symbols = subprocess.run(["readelf", "--dyn-syms", "--wide", native], check=True, capture_output=True, text=True)
    needed = re.findall(r" GLOBAL +\w+ +UND +(\S+)", symbols.stdout)
    assert "PyList_New" in needed
    assert not [symbol for symbol in needed if "@" not in symbol and not symbol.startswith(("Py", "_Py"))]
    if _MADE:
        assert re.fullmatch(r"tmem-[\d.]+-cp311-abi3-manylinux_2_2[0-8]_\w+\.whl", wheel.name)


def test_a_plain_installation_is_whole(published: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    place = tmp_path / "venv" / "bin"
    # The extras of former versions are still asked for, and bring nothing; a warning would be of an unknown one.
    said = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(place / "python"), "install", f"{published}[server,cli]"],
        check=True,
        env={**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target")},
        text=True,
        capture_output=True,
        timeout=3 * PATIENCE,
    )
    assert "WARNING" not in said.stderr, said.stderr
    plain = {"PATH": f"{place}:/usr/bin:/bin", "HOME": str(tmp_path)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [place / command[0], *command[1:]], env=plain, cwd=tmp_path, text=True, capture_output=True, check=False
        )

    for command in (("tmem", "--version"), ("tmemd", "--version"), ("tmemd", "--help")):
        told = run(*command)
        assert (told.returncode, told.stderr) == (0, "")
        assert command[0] in told.stdout
    daemon = subprocess.Popen(
        [place / "tmemd", "--listen", "127.0.0.1:0", "--memory", "32MiB"],
        env=plain,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
    )
    with daemon:
        try:
            assert daemon.stdout is not None
            address = next(line for line in daemon.stdout if line.startswith("listening on ")).split()[-1]
            told = run("python", "-c", _STORY, address)
            assert (told.returncode, told.stderr) == (0, "")
            assert "swap" in run("tmem", "--server", address, "pool", "ls").stdout
            assert run("python", "-m", "tmemd.probe", address).returncode == 0
        finally:
            daemon.terminate()


@pytest.mark.parametrize("module", ["uvloop", "grpc_health", "prometheus_client"])
def test_tmemd_says_what_to_install_where_a_package_is_missing(module: str) -> None:
    script = f"import sys; sys.modules[{module!r}] = None; from tmemd.app.cli import main; sys.exit(main([]))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(r"tmemd: not installed: pip install \S+\n", ended.stderr)
    assert module.replace("_", "-").split("-")[-1] in ended.stderr
