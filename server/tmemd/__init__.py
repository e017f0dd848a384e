"""The tmem daemon: serves the engine's pools to other machines over gRPC and NBD."""

__version__: str


def __getattr__(name: str) -> str:
    """The version is that of the distribution; only who asks for it pays for reading that."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tmem")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
