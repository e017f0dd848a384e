"""Every Python block of docs/sdk.md is run as it stands, as a program, against real daemons where it says they are."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.certificates import Authority
from tests.lib.daemon import daemon
from tests.lib.support import PATIENCE

GUIDE = Path(__file__).parents[3] / "docs" / "sdk.md"
PLAIN, SECURE = "127.0.0.1:7717", "localhost:7718"


def blocks() -> list[tuple[str, str, int]]:
    """Each block with the heading it stands under and its first line's number."""
    found = []
    heading = ""
    text = GUIDE.read_text()
    for match in re.finditer(
        r"^## (?P<heading>[^\n]+)$|^```python\n(?P<code>.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        heading = match["heading"] or heading
        if match["code"]:
            found.append((heading, match["code"], text.count("\n", 0, match.start("code"))))
    return found


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """A daemon in plain text, one with TLS, and the directory of the files a client of that one has."""
    files = tmp_path_factory.mktemp("tls")
    authority = Authority(files)
    client = authority.client("guide")
    shutil.copy(client.cert, files / "client.pem")
    shutil.copy(client.key, files / "client.key")
    tls = authority.flags(authority.server())
    with daemon("--memory", "64MiB") as plain, daemon("--memory", "64MiB", *tls) as secure:
        yield plain.address, secure.address.replace("127.0.0.1", "localhost"), files


@pytest.mark.parametrize(("code", "line"), [pytest.param(code, line, id=heading) for heading, code, line in blocks()])
def test_the_example_runs(code: str, line: int, addresses: tuple[str, str, Path], tmp_path: Path) -> None:
    plain, secure, files = addresses
    program = tmp_path / "sdk.md"
    program.write_text("\n" * line + code.replace(PLAIN, plain).replace(SECURE, secure))
    ended = subprocess.run(
        [sys.executable, program], cwd=files, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_every_subject_has_an_example() -> None:
    headings = re.findall(r"^## (.+)$", GUIDE.read_text(), re.MULTILINE)
    assert headings == [heading for heading, _, _ in blocks()]
    assert len(headings) >= 10
