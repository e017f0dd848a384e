"""The command `tmem` run in this process, against a real daemon."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from tmem.cli.app import root

if TYPE_CHECKING:
    from click.testing import Result


@dataclass
class Command:
    """`tmem --server ADDRESS`, and how many seconds a call may take, where it is not the usual ones."""

    address: str
    patience: float | None = None

    def run(self, *arguments: object, given: bytes | str | None = None, **environment: str) -> Result:
        """Run it, however it ends."""
        patience = [] if self.patience is None else [f"--timeout={self.patience}"]
        line = ["--server", self.address, *patience, *map(str, arguments)]
        return CliRunner().invoke(root, line, input=given, env={"COLUMNS": None, **environment}, prog_name="tmem")

    def __call__(self, *arguments: object, **environment: str) -> str:
        """Run it; what it says. It must succeed."""
        ended = self.run(*arguments, **environment)
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    def json(self, *arguments: object) -> Any:
        """Run it with `--json`; the document."""
        return json.loads(self(*arguments, "--json"))

    def fails(self, *arguments: object, status: int = 1, given: bytes | str | None = None) -> str:
        """Run it; the one line in which it says why it failed."""
        ended = self.run(*arguments, given=given)
        assert ended.exit_code == status, ended.output
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert ended.stderr.startswith("tmem: ")
        return ended.stderr
