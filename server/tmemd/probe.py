"""Whether a daemon serves, asked of its standard health service: `python -m tmemd.probe`, for health checks.

Exit status 0 is SERVING; 1 is anything else, with the reason on stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask once; the exit status."""
    given = _parser().parse_args(arguments)
    try:
        with _channel(given) as channel:
            stub: Any = HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=given.service)
            status = stub.Check(request, timeout=given.timeout, wait_for_ready=False).status
    except grpc.RpcError as error:
        return _no(f"{given.address}: {error.code().name}: {error.details()}")
    except OSError as error:
        return _no(str(error))
    if status != health_pb2.HealthCheckResponse.SERVING:
        return _no(f"{given.address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tmemd.probe", description="Ask a daemon whether it serves.")
    parser.add_argument("address", nargs="?", default="127.0.0.1:7717", help="HOST:PORT (%(default)s)")
    parser.add_argument("--service", default="tmem.v1.Tmem", help="the service asked about (%(default)s)")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS", help="to wait at most (%(default)s)")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="certificates that vouch for the daemon: use TLS")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="own certificate, where the daemon asks for one")
    parser.add_argument("--key", type=Path, metavar="FILE", help="key of the own certificate")
    parser.add_argument("--name", metavar="HOST", help="name in the daemon's certificate, if not the address's")
    return parser


def _channel(given: argparse.Namespace) -> grpc.Channel:
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if given.ca is None:
        return grpc.insecure_channel(given.address, options)
    own = [path.read_bytes() if path else None for path in (given.key, given.cert)]
    credentials = grpc.ssl_channel_credentials(given.ca.read_bytes(), *own)
    if given.name:
        options.append(("grpc.ssl_target_name_override", given.name))
    return grpc.secure_channel(given.address, credentials, options=options)


def _no(reason: str) -> int:
    print(f"tmemd.probe: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
