"""The settings of pools and exports: each is written once, and the wire, the options and the signatures have it too."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

import tmem
from tmem import aio
from tmem._model.settings import ExportOptions, ExportSpec, PoolOptions, PoolSettings, export_spec, pool_settings
from tmem._protocol.messages import settings_dict, settings_message
from tmem_proto.v1 import admin_pb2 as admin
from tmem_proto.v1 import tmem_pb2 as pb

SETTINGS = [field.name for field in fields(PoolSettings)]
SPEC = [field.name for field in fields(ExportSpec)]


def keywords(method: Any) -> list[str]:
    """The keyword arguments of a method, each of which has a line in its documentation."""
    found = [one.name for one in inspect.signature(method).parameters.values() if one.kind is one.KEYWORD_ONLY]
    lines = inspect.getdoc(method) or ""
    assert all(f"\n    {name}: " in lines for name in found)
    assert "**options" not in lines
    return found


def test_the_wire_has_every_setting() -> None:
    assert sorted(SETTINGS) == sorted(pb.PoolSettings.DESCRIPTOR.fields_by_name)
    wire = admin.CreateExportRequest.DESCRIPTOR.fields_by_name
    assert sorted(SPEC) == sorted({"allowed": "allow"}.get(name, name) for name in wire)


def test_a_store_takes_every_setting_and_documents_it() -> None:
    assert keywords(tmem.Store.pool) == SETTINGS == list(PoolOptions.__annotations__)
    assert sorted(keywords(tmem.Store.create_export)) == sorted(ExportOptions.__annotations__) == sorted(SPEC[2:])


@pytest.mark.parametrize("method", ["pool", "create_export"])
def test_the_asynchronous_store_takes_the_same(method: str) -> None:
    asynchronous, synchronous = (inspect.signature(getattr(of, method)) for of in (aio.AsyncStore, tmem.Store))
    assert asynchronous.parameters == synchronous.parameters


def test_settings_come_through_the_wire_whole() -> None:
    settings = PoolSettings(
        kind="ephemeral",
        codec="zstd:3",
        allocator="zsmalloc",
        page_size=8192,
        quota=2**40,
        weight=7,
        shared=True,
        inclusive=True,
        max_zpage=4000,
        owner="\u00e9va",
    )
    assert PoolSettings(**settings_dict(settings_message(settings))) == settings


def test_sizes_may_have_units_and_no_quota_is_none() -> None:
    settings = pool_settings(page_size="8KiB", quota=None, max_zpage="4k")
    assert (settings.page_size, settings.quota, settings.max_zpage) == (8192, 0, 4096)
    spec = export_spec("swap0", "1GiB", reserve="1MiB", block_size="64KiB")
    assert (spec.size, spec.reserve, spec.block_size) == (2**30, 2**20, 2**16)


@pytest.mark.parametrize(("kind", "allocator"), [("persistent", "zsmalloc"), ("ephemeral", "zbud")])
def test_the_allocator_follows_the_kind(kind: Any, allocator: str) -> None:
    assert pool_settings(kind=kind).allocator == allocator
    assert pool_settings(kind=kind, allocator=None).allocator == allocator


def test_a_setting_that_does_not_exist_is_an_error() -> None:
    unknown: Any = {"pagesize": 4096}
    with pytest.raises(TypeError, match="pagesize"):
        pool_settings(**unknown)
    with pytest.raises(TypeError, match="pagesize"):
        export_spec("swap0", 4096, **unknown)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"codec": 4}, TypeError),
        ({"codec": ""}, ValueError),
        ({"shared": 1}, TypeError),
        ({"weight": 0}, ValueError),
        ({"weight": 2**32}, ValueError),
        ({"page_size": 0}, ValueError),
        ({"quota": 2**64}, ValueError),
        ({"max_zpage": 2**32}, ValueError),
    ],
)
def test_what_the_wire_cannot_say_is_refused_here(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        settings_message(pool_settings(**options))


def test_the_usual_weight_is_left_to_the_server() -> None:
    assert settings_message(pool_settings()).weight == 0
    assert settings_message(pool_settings(weight=2)).weight == 2
