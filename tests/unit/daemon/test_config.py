"""The daemon's configuration of TLS and clients: what it means, and what makes no sense."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tmemd.base.errors import ConfigError
from tmemd.config.clients import ClientSettings
from tmemd.config.settings import dump, load, restore

TLS = {"tls_cert": "cert.pem", "tls_key": "key.pem"}
CLIENTS = """
admins = ["ops", "backup"]

[clients.alice]
quota = "1GiB"
weight = 2
shared = ["pool-*", "other"]

[clients."a.b \\"ü\\\\"]
"""


def written(directory: Path, text: str) -> Path:
    file = directory / "tmemd.toml"
    file.write_text(text)
    return file


def test_clients_have_quota_weight_and_shared_pools(tmp_path: Path) -> None:
    config = load({}, {}, written(tmp_path, CLIENTS))
    assert config.administrators == {"ops", "backup"}
    assert config.clients == {
        "alice": ClientSettings(quota=1 << 30, weight=2, shared=("pool-*", "other")),
        'a.b "ü\\': ClientSettings(quota=0, weight=1, shared=()),
    }
    assert config.clients["alice"].may_share("pool-1")
    assert not config.clients["alice"].may_share("Pool-1")


def test_what_is_printed_is_read_again(tmp_path: Path) -> None:
    config = load({**TLS, "tls_client_ca": 'odd "name"\\.pem'}, {}, written(tmp_path, CLIENTS))
    again = load({}, {}, written(tmp_path, dump(config)))
    assert again == restore(dump(config)) == config
    assert dump(again) == dump(config)


def test_clients_are_frozen(tmp_path: Path) -> None:
    config = load({}, {}, written(tmp_path, CLIENTS))
    with pytest.raises(TypeError):
        config.clients["bob"] = ClientSettings()  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.clients["alice"].quota = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[clients.alice]\nquotta = 1", "alice has no setting 'quotta'; there are quota, weight, shared"),
        ('[clients.alice]\nquota = "lots"', "quota of alice is 'lots': expected bytes"),
        ("[clients.alice]\nweight = 0", "weight of alice is 0: must be 1 to"),
        ("[clients.alice]\nshared = 7", "shared of alice is 7: expected a list of names"),
        ("[clients.alice]\nshared = [7]", "expected non-empty text"),
        ("[clients]\nalice = 1", "alice must be a table"),
        ("clients = 1", "expected tables such as"),
        (f"[clients.{'x' * 65}]", "is not a valid client name"),
        ('[clients."two\\nlines"]', "is not a valid client name"),
        ("admins = 7", "expected a list of names"),
    ],
)
def test_clients_that_make_no_sense(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load({}, {}, written(tmp_path, text))
    assert why in str(refused.value)
    assert "tmemd.toml" in str(refused.value)


def test_clients_stand_in_the_file_only() -> None:
    with pytest.raises(ConfigError, match="TMEMD_CLIENTS: it can only be set in the file"):
        load({}, {"TMEMD_CLIENTS": "alice"})


def test_administrators_unless_named() -> None:
    assert load({}, {}).administrators == {"local"}
    assert load({"insecure": True}, {}).administrators == {"local", "network"}
    assert load({"insecure": True}, {"TMEMD_ADMINS": "a, b"}).administrators == {"a", "b"}


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"tls_cert": "cert.pem"}, "tls_cert and tls_key belong together"),
        ({"tls_key": "key.pem"}, "tls_cert and tls_key belong together"),
        ({"tls_client_ca": "ca.pem"}, "set tls_cert and tls_key too"),
        ({**TLS, "insecure": True}, "not both"),
        ({"listen": "0.0.0.0:1"}, "give tls_cert and tls_key"),
        ({"metrics": "[::]:1"}, "or insecure, if anybody"),
        ({"metrics": "ramhost:1"}, "or insecure, if anybody"),
    ],
)
def test_tls_that_makes_no_sense(flags: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(flags, {})
    assert why in str(refused.value)


def test_addresses_that_others_reach_are_for_tls_or_insecure() -> None:
    for given in (TLS, {"insecure": True}):
        config = load({**given, "listen": "0.0.0.0:7717", "metrics": "[::]:9117"}, {})
        assert (config.listen, config.metrics) == ("0.0.0.0:7717", "[::]:9117")
