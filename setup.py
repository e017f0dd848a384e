"""What pyproject.toml cannot say: the version, which is Cargo.toml's, and the build switch `TMEM_PURE=1`.

That one builds the SDK alone, in pure Python, for any system.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup

PURE = os.environ.get("TMEM_PURE", "") not in ("", "0")
_PURE = ("tmem", "tmem_main", "tmem_proto")


class PureDistribution(Distribution):
    """Without the engine, which is native, and the daemon, which needs it."""

    def parse_config_files(self, *args: Any, **options: Any) -> None:
        super().parse_config_files(*args, **options)
        self.packages = [
            name for name in self.packages if name.partition(".")[0] in ("tmem", "tmem_main", "tmem_proto")
        ]
        scripts = self.entry_points["console_scripts"]
        self.entry_points["console_scripts"] = [script for script in scripts if not script.startswith("tmemd")]
        self.rust_extensions: list[object] = []
        self.has_ext_modules = lambda: False


cargo = tomllib.loads(Path(__file__).with_name("Cargo.toml").read_text(encoding="utf-8"))
setup(
    version=cargo["workspace"]["package"]["version"],
    distclass=PureDistribution if PURE else Distribution,
)
