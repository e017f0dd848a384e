"""deploy/tmemd.toml names every setting of the daemon, and is a file that it reads."""

import re
import tomllib
from pathlib import Path

from tmemd.config.settings import OPTIONS, Config, load
from tmemd.process.reload import LIVE

SAMPLE = Path(__file__).parents[3] / "deploy" / "tmemd.toml"
# Examples, for these have no default or one that follows the machine.
EXAMPLES = {
    "metrics_clients",
    "metrics",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "admins",
    "memory",
    "arena",
    "shards",
    "threads",
}
EXAMPLES |= {"inject", "clients", "nbd"}


def uncommented() -> str:
    return re.sub(r"^#(?=\w+ = |\[)", "", SAMPLE.read_text(), flags=re.MULTILINE)


def test_every_setting_is_there_and_nothing_else() -> None:
    assert set(tomllib.loads(uncommented())) == set(OPTIONS), "deploy/tmemd.toml and tmemd's settings differ"


def test_every_setting_stands_below_its_meaning() -> None:
    lines = SAMPLE.read_text().splitlines()
    for at, line in enumerate(lines):
        if re.match(r"#(\w+) = ", line) and not lines[at - 1].startswith("#"):
            raise AssertionError(f"{line}: nothing says what it means")


def test_as_it_stands_it_changes_nothing() -> None:
    assert load({}, {}, SAMPLE) == Config()


def test_examples_are_valid_and_the_rest_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "tmemd.toml"
    path.write_text(uncommented())
    config = load({}, {}, path)
    for name in OPTIONS.keys() - EXAMPLES:
        assert getattr(config, name) == getattr(Config(), name), name


def test_what_changes_without_a_restart_is_told_alike_everywhere() -> None:
    operations = (SAMPLE.parents[1] / "docs" / "operations.md").read_text()
    told = operations.partition("**Reading the configuration again.**")[2].partition("change at once")[0]
    assert set(re.findall(r"`([a-z_]+)`", told)) == LIVE
    told = SAMPLE.read_text().partition("(`systemctl reload`)")[2].partition("change then")[0]
    assert {name for name in re.findall(r"[a-z_]+", told) if name in OPTIONS} == LIVE
