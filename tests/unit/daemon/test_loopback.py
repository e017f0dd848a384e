"""One rule says which listeners need TLS: Python and Rust agree on every address."""

from __future__ import annotations

import pytest

import tmem_engine
from tmemd.base.parsers import is_loopback

HOSTS = {
    "localhost": True,
    "127.0.0.1": True,
    "127.0.0.2": True,
    "127.255.255.254": True,
    "::1": True,
    "::ffff:127.0.0.1": True,
    "::ffff:127.3.2.1": True,
    "": False,
    "*": False,
    "0.0.0.0": False,
    "::": False,
    "::ffff:0.0.0.0": False,
    "::ffff:10.0.0.1": False,
    "10.0.0.1": False,
    "128.0.0.1": False,
    "fe80::1": False,
    "LOCALHOST": False,
    "localhost.": False,
    "localhost.example": False,
    "ram1": False,
    "127.1": False,
    "0127.0.0.1": False,
    "2130706433": False,
}


@pytest.mark.parametrize("host", HOSTS)
def test_both_rules_say_the_same_of_a_host(host: str) -> None:
    address = f"[{host}]:1" if ":" in host else f"{host}:1"
    assert (is_loopback(address), tmem_engine.is_loopback(host)) == (HOSTS[host], HOSTS[host])
