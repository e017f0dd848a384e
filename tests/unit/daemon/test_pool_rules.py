"""The one rule of who may open a pool, for calls and for gateways."""

from __future__ import annotations

import pytest

from tmemd.config.clients import ClientSettings
from tmemd.config.settings import Config
from tmemd.security.pool_rights import PoolRights, Rules
from tmemd.store.null_store import NullStore

CONFIG = Config(
    store="null",
    admins=("root",),
    clients={"reader": ClientSettings(shared=("fs-*",)), "other": ClientSettings(shared=("db-*",))},
)
RULES = Rules(CONFIG.administrators, CONFIG.clients)


@pytest.mark.parametrize(
    ("client", "pool", "owner", "shared", "may"),
    [
        ("root", "fs-1", "owner", False, True),
        ("owner", "fs-1", "owner", False, True),
        ("reader", "fs-1", "owner", True, True),
        ("reader", "fs-1", "owner", False, False),
        ("reader", "db-1", "owner", True, False),
        ("other", "fs-1", "owner", True, False),
        ("stranger", "fs-1", "owner", True, False),
        ("stranger", "fs-1", "", False, False),
        ("root", "fs-1", "", False, True),
    ],
)
def test_owners_administrators_and_those_whose_patterns_match_a_shared_pool(
    client: str, pool: str, owner: str, shared: bool, may: bool
) -> None:
    assert RULES.may_open(client, pool, owner, shared) is may
    rights = PoolRights(NullStore(CONFIG), CONFIG)
    assert (rights.refuse_gateway(client, pool, owner, shared, False) == "") is may


@pytest.mark.parametrize(
    ("client", "pool", "made", "why"),
    [
        ("root", ".exports", False, "belongs to the daemon"),
        ("root", "export/disk", False, "belongs to the daemon"),
        ("owner", "new", True, "may not have it created"),
        ("root", "new", True, ""),
    ],
)
def test_a_gateway_has_no_pool_of_the_daemons_and_only_administrators_have_one_made(
    client: str, pool: str, made: bool, why: str
) -> None:
    said = PoolRights(NullStore(CONFIG), CONFIG).refuse_gateway(client, pool, client, False, made)
    assert why in said
    assert bool(said) == bool(why)
