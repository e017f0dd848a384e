"""What the daemon's processes tell gRPC is told before gRPC is imported, which reads it then."""

import ast
from pathlib import Path

import pytest

import tmemd.app.cli

SOURCES = Path(tmemd.app.cli.__file__).parent


@pytest.mark.parametrize("entry", ["cli.py", "worker.py"])
def test_polling_is_the_first_of_ours_that_is_imported(entry: str) -> None:
    tree = ast.parse((SOURCES / entry).read_text())
    imported = [name for node in tree.body for name in _names(node)]
    assert "grpc" not in {name.partition(".")[0] for name in imported}
    assert next(name for name in imported if name.startswith("tmemd")) == "tmemd.process.grpc_polling"


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
