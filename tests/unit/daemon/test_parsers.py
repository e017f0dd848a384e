"""Values of settings as people write them, and whose variables are no settings."""

from pathlib import Path

import pytest

from tmemd.base.errors import ConfigError
from tmemd.base.os_errors import why_unreadable
from tmemd.base.parsers import address, block_addresses, seconds, size
from tmemd.config.settings import load, service_links


def test_two_gibibytes_have_many_names() -> None:
    assert {size(text) for text in ("2G", "2g", "2Gi", "2GiB", "2 GiB", "2048M", 2 << 30)} == {2 << 30}
    assert size("2GB") == 2_000_000_000
    for value in (True, 1.5, "", "-1", "0.3k"):
        with pytest.raises(ValueError, match="expected"):
            size(value)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (":7717", "0.0.0.0:7717"),
        ("*:7717", "0.0.0.0:7717"),
        ("[::]:7717", "[::]:7717"),
        (" ramhost:07717 ", "ramhost:7717"),
    ],
)
def test_addresses(text: str, read: str) -> None:
    assert address(text) == read
    assert block_addresses([f"tcp:{text.strip()}"]) == (f"tcp:{read}",)


@pytest.mark.parametrize("text", ["7717", "here", "a b:1", ":", "host:", ":70000", "host:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        address(text)


def test_times_have_units() -> None:
    assert [seconds(0, 9000)(text) for text in (90, "90", "90s", "1m", "2 h")] == [90, 90, 90, 60, 7200]
    for text in ("1.5", "10ms", "3h", "", True):
        with pytest.raises(ValueError, match=r"expected whole seconds|must be 0 to 9000"):
            seconds(0, 9000)(text)


KUBERNETES = {
    "TMEMD_SERVICE_HOST": "10.0.0.1",
    "TMEMD_SERVICE_PORT": "7717",
    "TMEMD_SERVICE_PORT_GRPC": "7717",
    "TMEMD_PORT": "tcp://10.0.0.1:7717",
    "TMEMD_PORT_7717_TCP": "tcp://10.0.0.1:7717",
    "TMEMD_PORT_7717_TCP_PROTO": "tcp",
    "TMEMD_PORT_7717_TCP_PORT": "7717",
    "TMEMD_PORT_7717_TCP_ADDR": "10.0.0.1",
    "TMEMD_METRICS_PORT": "tcp://10.0.0.2:9117",
    "TMEMD_METRICS_SERVICE_HOST": "10.0.0.2",
}


def test_variables_of_a_service_that_is_called_tmemd_are_no_settings() -> None:
    assert load({}, {**KUBERNETES, "TMEMD_THREADS": "3"}).threads == 3
    assert service_links({**KUBERNETES, "TMEMD_THREADS": "3"}) == list(KUBERNETES)


@pytest.mark.parametrize(
    ("name", "value"),
    [("TMEMD_PORT", "7717"), ("TMEMD_SERVICE_PORT", "http"), ("TMEMD_PORT_X_TCP", "tcp://a:1"), ("TMEMD_MEMROY", "1G")],
)
def test_a_variable_that_only_looks_so_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: unknown setting"):
        load({}, {**KUBERNETES, name: value})


def test_a_file_that_may_not_be_read_says_whose_it_is(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("")
    key.chmod(0o600)
    said = why_unreadable(key, PermissionError(13, "Permission denied"))
    assert said.startswith(f"{key}: Permission denied (mode 0600, owner ")
    assert "tmemd runs as " in said


def test_a_file_of_settings_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/dev/zero: it is longer than"):
        load({}, {"TMEMD_CONFIG": "/dev/zero"})
    file = tmp_path / "deep.toml"
    file.write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"deep\.toml"):
        load({}, {}, file)
