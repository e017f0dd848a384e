"""The command `tmem` as a process: exit status, signals, a terminal, completion, and what it needs."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tmem
from tests.lib.daemon import daemon
from tests.lib.support import PATIENCE, noise, run

if TYPE_CHECKING:
    from collections.abc import Iterator

TMEM = [sys.executable, "-m", "tmem.cli"]
SCRIPT = [sys.executable, "-c", "from tmem_main import main; main()"]
"""As the shell's command does it."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A daemon with a pool `swap` of 100 pages."""
    with daemon("--memory", "32MiB") as running, tmem.connect(running.address) as store:
        store.pool("swap").put_range(1, 0, run(0, 100))
        yield running.address


def command(server: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TMEM_SERVER": server, **environment}
    return subprocess.run([*TMEM, *arguments], env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_the_command_is_a_process_with_an_exit_status(server: str) -> None:
    listed = command(server, "pool", "ls", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [pool["name"] for pool in json.loads(listed.stdout)] == ["swap"]
    unknown = command(server, "stat", "swop")
    assert (unknown.returncode, unknown.stdout, unknown.stderr.count("\n")) == (1, "", 1)
    assert command(server, "stat", "--nonsense").returncode == 2


def test_it_says_what_to_install_where_a_package_is_missing() -> None:
    for missing in ("click", "rich"):
        script = f"import sys; sys.modules[{missing!r}] = None; from tmem.cli import main; main()"
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stderr == f"tmem: {missing} is not installed: pip install {missing}\n"


def test_the_shell_completes_commands_and_names_of_pools(server: str) -> None:
    def complete(line: str) -> list[str]:
        asked = command(
            server, _TMEM_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1)
        )
        return [entry.partition(",")[2] for entry in asked.stdout.splitlines()]

    assert complete("tmem re") == ["relinquish", "restore"]
    assert complete("tmem stat s") == ["swap"]


@pytest.mark.parametrize("options", [["--version"], ["--server", "nowhere:1", "--version"]])
def test_it_says_its_version_without_a_server(options: list[str]) -> None:
    for tool in (TMEM, SCRIPT):
        said = subprocess.run([*tool, *options], capture_output=True, text=True, check=True)
        assert (said.stdout, said.stderr) == (f"tmem {tmem.__version__}\n", "")


INTERRUPTER = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["MOMENT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
"""


@pytest.mark.parametrize(
    "moment",
    [
        "tmem",
        "tmem._pool",
        "google_crc32c",
        "tmem.cli",
        "click",
        "rich.console",
        "tmem.cli.app",
        "tmem.cli.commands.top",
        "grpc",
    ],
)
def test_an_interrupt_at_any_import_ends_it_without_a_word(server: str, tmp_path: Path, moment: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTER)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [*SCRIPT, "--server", server, "pool", "ls"],
        env={**os.environ, "PYTHONPATH": path, "MOMENT": moment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (130, "", "")


@pytest.mark.parametrize(
    ("line", "closed", "status"),
    [
        ("pool ls", "0<&-", 0),
        ("put swap empty -", "0<&-", 0),
        ("pool ls", "2>&-", 0),
        ("stat nowhere", "2>&-", 1),
        ("pool ls", "1>&-", 1),
        ("pool ls --json", "1>&-", 1),
        ("save swap -", "1>&-", 1),
        ("get swap nothing", "1>&-", 1),
        ("--version", "0<&- 1>&- 2>&-", 1),
    ],
)
def test_streams_that_are_closed_are_not_the_next_files(server: str, line: str, closed: str, status: int) -> None:
    tool = shlex.join([*SCRIPT, "--server", server])
    ended = subprocess.run(f"{tool} {line} {closed}", shell=True, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    if closed == "1>&-" and "nothing" not in line:
        assert "Bad file descriptor" in ended.stderr
        assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("line", ["pool ls", "--version", "save swap -"])
def test_a_standard_output_that_is_full_is_a_failure_that_says_so(server: str, line: str) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*TMEM, "--server", server, *line.split()], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 1)
    assert b"No space left on device" in ended.stderr


WRITER = """
import sys
from tmem.cli.base import interrupts
from tmem.cli.base.output_file import PRIVATE, writing
interrupts.prepare()
with writing(sys.argv[1], PRIVATE) as sink:
    sink.write(b"new")
    print("begun", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", -15), ("SIGHUP", -1)])
def test_a_signal_takes_the_file_away_that_was_half_written(tmp_path: Path, number: str, status: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdin=pipe, stdout=pipe) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        assert len(list(tmp_path.iterdir())) == 2
        writer.send_signal(getattr(signal, number))
        assert writer.wait(PATIENCE) == status
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (b"old", [file])


def test_a_command_that_is_interrupted_ends_in_order_with_status_130(server: str, tmp_path: Path) -> None:
    """It has written to a pipe until that was full."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with tmem.connect(server) as store:
        store.pool("large").put_range(1, 0, b"".join(map(noise, range(100))))
    tool = subprocess.Popen([*SCRIPT, "--server", server, "save", "large", str(pipe)], stderr=subprocess.PIPE)
    with pipe.open("rb", buffering=0) as reader:
        assert reader.read(5) == b"tmem-"
        tool.send_signal(signal.SIGINT)
        assert tool.communicate(timeout=PATIENCE)[1].strip() == b""
    assert tool.returncode == 130
    with tmem.connect(server) as store:
        store.find_pool("large").destroy()


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, *arguments: str, columns: int = 80, lines: int = 24) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*TMEM, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def read_until(self, pattern: str) -> str:
        """What it says up to the pattern, from the beginning."""
        end = time.monotonic() + PATIENCE
        while not re.search(pattern, self.said):
            assert select.select([self._master], [], [], end - time.monotonic())[0], self.said
            try:
                self.said += os.read(self._master, 65536).decode()
            except OSError:  # what a terminal is at its end
                raise AssertionError(self.said) from None
        return self.said

    def said_within(self, seconds: float, pattern: str) -> bool:
        """Whether it says something like the pattern in that time."""
        if select.select([self._master], [], [], seconds)[0]:
            self.said += os.read(self._master, 65536).decode()
        return bool(re.search(pattern, self.said))

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        try:
            return self.process.wait(timeout=PATIENCE)
        finally:
            self.process.kill()
            os.close(self._master)


@pytest.mark.parametrize("way", ["q", "interrupt"])
def test_top_redraws_one_screen_until_q_or_an_interrupt(server: str, way: str) -> None:
    terminal = Terminal("--server", server, "top", "--interval", "0.1")
    terminal.read_until(r"(?s)\x1b\[\?1049h.*swap.*swap.*swap")
    if way == "q":
        terminal.press(b"q")
    else:
        terminal.process.send_signal(signal.SIGINT)
    terminal.read_until(r"\x1b\[\?1049l")
    assert terminal.end() == 0
    drawn = terminal.said.partition("\x1b[?1049h")[2]
    assert "\x1b[2J" not in drawn.partition("swap")[2]


def test_colours_are_for_terminals_that_want_them(server: str) -> None:
    assert "\x1b[" not in command(server, "pool", "ls").stdout
    terminal = Terminal("--server", server, "pool", "ls")
    assert "\x1b[1m" in terminal.read_until("swap")
    assert terminal.end() == 0


def test_an_interrupt_ends_what_would_go_on(server: str) -> None:
    terminal = Terminal("--server", server, "events", "--follow")
    with tmem.connect(server) as store:
        for turn in itertools.count():  # until it watches
            pool = store.pool(f"pool-{turn}")
            watching = terminal.said_within(2, "pool created")
            pool.destroy()
            if watching:
                break
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.said


def test_a_reader_that_goes_away_is_no_trouble(server: str) -> None:
    line = f"{sys.executable} -m tmem.cli --server {server} top --iterations 50 --interval 0.05 --json | head -1"
    ended = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert json.loads(ended.stdout)["pools"][0]["name"] == "swap"
    assert "Traceback" not in ended.stderr
