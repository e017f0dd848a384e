"""The tmem daemon: serves the engine's pools to other machines over gRPC and NBD."""

__version__ = "0.1.0"
