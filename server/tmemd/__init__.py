"""The tmem daemon: serves the engine's pools to other machines over gRPC and NBD."""

__version__: str


def __getattr__(name: str) -> str:
    """The version of the distribution, read only when asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tmem")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
