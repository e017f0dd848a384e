"""README's Python and commands run as they stand; only addresses, sizes and paths are made a test's own."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lib.daemon import daemon
from tests.lib.support import PATIENCE

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
MOST_LINES = 125


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def commands(program: str, folder: Path) -> list[list[str]]:
    """The lines that begin with a program, in their order, without its name."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(_own(line, folder), comments=True)[1:] for line in lines if line.split()[0] == program]


def _own(line: str, folder: Path) -> str:
    for theirs in ("/run/", "/dev/shm/", "/dev/sdx"):
        line = line.replace(theirs, f"{folder}/{theirs.strip('/').partition('/')[2]}")
    return line.replace("GiB", "MiB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tmemd").mkdir()
    return tmp_path


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """README's daemon; the address of its gRPC."""
    ((*flags,),) = commands("tmemd", folder)
    with daemon(*flags) as running:
        yield running.address


def tmem(line: list[str], address: str) -> list[str]:
    return [sys.executable, "-m", "tmem.cli", *([] if "--server" in line else ["--server", address]), *line]


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, (command, done.stderr)


def test_the_example_runs() -> None:
    (example,) = blocks("python")
    exec(compile(example, str(README), "exec"), {"__name__": "__main__"})


def test_a_disk_is_exported_and_written(folder: Path) -> None:
    with served(folder) as address:
        (create,) = [line for line in commands("tmem", folder) if line[0] == "export"]
        run(tmem(create, address), folder)
        if shutil.which("qemu-img") is None:
            pytest.skip("there is no qemu-img")
        (convert,) = commands("qemu-img", folder)
        run(["qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "8M"], folder)
        run(["qemu-img", *convert], folder)


def test_the_gateway_serves_a_volume(folder: Path) -> None:
    (folder / "sdx").write_bytes(bytes(1 << 20))
    with served(folder) as address:
        (create,) = [line for line in commands("tmem", folder) if line[0] == "pool"]
        run(tmem(create, address), folder)
        (san,) = [line for line in commands("tmem", folder) if line[0] == "san"]
        with subprocess.Popen([*tmem(san, address), f"--state={folder}"], stdout=subprocess.PIPE, text=True) as gateway:
            assert gateway.stdout is not None
            assert gateway.stdout.readline().startswith("ready: ")
            gateway.terminate()
            assert gateway.wait(PATIENCE) == 0


def test_every_target_of_make_is_there() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(path.read_text() for path in documents if path.name != "CHANGELOG.md")
    fenced = "\n".join(re.findall(r"^```\w*\n.*?^```$", text, re.MULTILINE | re.DOTALL))
    named = set(re.findall(r"^make ([a-z-]+)", fenced, re.MULTILINE)) | set(re.findall(r"`make ([a-z-]+)", text))
    assert {"demo", "dist", "check"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_file_is_there() -> None:
    files = re.findall(r"\]\(([^)#:]+)", README.read_text()) + re.findall(r" -f (\S+)", README.read_text())
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_it_fits_in_a_few_screens() -> None:
    assert len(README.read_text().splitlines()) <= MOST_LINES
