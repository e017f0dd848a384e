"""The health check `python -m tmemd.probe`, cheap enough to run every few seconds.

Exits with 0 if the daemon serves, else with 1 and the reason on stderr. With an address it asks the standard health
service there. Without one it asks the daemon of this machine, found by its settings (`TMEMD_...` and the file of
`TMEMD_CONFIG`): at `/readyz` if it serves metrics, else its health service.

It imports neither gRPC nor the daemon's own modules, unless an answer needs explaining.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from tmemd.app.health_call import check

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping, Sequence

SERVICE = "tmem.v1.Tmem"
_LISTEN = "127.0.0.1:7717"
_EVERYWHERE = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_MOST_BYTES = 64 << 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask once; the exit status."""
    given = _parser().parse_args(arguments)
    try:
        address, why = _check(given)
    except OSError as error:
        print(f"tmemd.probe: {_why(error)}", file=sys.stderr)
        return 1
    if why:
        print(f"tmemd.probe: {address}: {why}", file=sys.stderr)
    return 1 if why else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tmemd.probe", description="Ask a daemon whether it serves.")
    parser.add_argument("address", nargs="?", help="HOST:PORT; by default from the daemon's settings")
    parser.add_argument("--config", metavar="FILE", help="the daemon's settings file (TMEMD_CONFIG)")
    parser.add_argument("--service", help=f"the service to check ({SERVICE})")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS", help="how long to wait (%(default)s)")
    parser.add_argument("--ca", metavar="FILE", help="authorities for the daemon's certificate; enables TLS")
    parser.add_argument("--cert", metavar="FILE", help="own certificate, if the daemon asks for one")
    parser.add_argument("--key", metavar="FILE", help="key of the own certificate")
    parser.add_argument(
        "--name", metavar="HOST", help="name in the daemon's certificate, if it differs from the address"
    )
    return parser


def _check(given: argparse.Namespace) -> tuple[str, str]:
    """Who was asked, and why it does not serve; empty if it does."""
    settings = {} if given.address else _settings(given.config, os.environ)
    metrics = str(settings.get("metrics", ""))
    if metrics and _port(metrics) and given.service is None and not given.ca:
        secure = "tls_cert" in settings and not _is_loopback(metrics)
        anybody = {name: settings[name] for name in ("tls_cert",) if secure}  # /readyz asks nobody for a certificate
        return metrics, _ask(given, metrics, anybody, _readyz)
    address = given.address or str(settings.get("listen", _LISTEN))
    return address, _ask(given, address, settings, _health)


def _ask(given: argparse.Namespace, address: str, settings: Mapping[str, Any], question: Any) -> str:
    deadline = time.monotonic() + given.timeout
    context = _context(given, settings)
    try:
        with closing(_connected(given, address, settings, context, deadline)) as peer:
            return str(question(given, address, peer, context is not None, deadline))
    except TimeoutError:
        return f"DEADLINE_EXCEEDED: no answer within {given.timeout:g} s"
    except OSError as error:
        return f"UNAVAILABLE: {_why(error)}"


def _settings(path: str | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """The daemon's settings for addresses and certificates."""
    settings: dict[str, Any] = {}
    if path := path or environment.get("TMEMD_CONFIG"):
        import tomllib

        with open(path, "rb") as file:
            try:
                settings = tomllib.load(file)
            except (ValueError, RecursionError) as error:
                raise OSError(f"{path}: {error}") from error
    names = ("listen", "metrics", "tls_cert", "tls_key", "tls_client_ca")
    return settings | {name: environment[key] for name in names if (key := f"TMEMD_{name.upper()}") in environment}


def _context(given: argparse.Namespace, settings: Mapping[str, Any]) -> ssl.SSLContext | None:
    """The TLS context, if TLS is used. The daemon of this machine is recognised by its very certificate."""
    if given.ca is None and "tls_cert" not in settings:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if given.ca is not None:
        with open(given.ca) as file:
            context.load_verify_locations(cadata=file.read())
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    cert, key = given.cert, given.key
    if cert is None and "tls_client_ca" in settings:
        cert, key = settings["tls_cert"], settings.get("tls_key")
    if cert is not None:
        for path in filter(None, (cert, key)):
            os.stat(path)  # whose error has the path
        context.load_cert_chain(cert, key)
    return context


def _connected(
    given: argparse.Namespace,
    address: str,
    settings: Mapping[str, Any],
    context: ssl.SSLContext | None,
    deadline: float,
) -> socket.socket:
    host, port = _split(address)
    plain = socket.create_connection((_EVERYWHERE.get(host, host), port), timeout=_left(deadline))
    if context is None:
        return plain
    import ssl

    try:
        secured = context.wrap_socket(plain, server_hostname=given.name or host)
        if given.ca is None:
            with open(settings["tls_cert"]) as file:
                first = file.read().partition("-----END CERTIFICATE-----")
            if secured.getpeercert(True) != ssl.PEM_cert_to_DER_cert("".join(first[:2]).strip()):
                raise OSError(f"it shows another certificate than {settings['tls_cert']}")
    except BaseException:
        plain.close()
        raise
    return secured


def _readyz(given: argparse.Namespace, address: str, peer: socket.socket, secure: bool, deadline: float) -> str:
    del given, secure
    peer.sendall(f"GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
    answer = b"".join(_received(peer, deadline))
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split()[1:2] == [b"200"]:
        return ""
    return f"not ready: {body.decode(errors='replace').strip() or 'no answer'}"


def _health(given: argparse.Namespace, address: str, peer: socket.socket, secure: bool, deadline: float) -> str:
    status = check(peer.sendall, _received(peer, deadline), address, _service(given), secure)
    if status is None:
        if secure and given.ca is None:
            return "its health service does not say that it serves"
        return _explained(given, address)
    return status


def _received(peer: socket.socket, deadline: float) -> Iterator[bytes]:
    """Everything until the peer hangs up, within limits of time and length."""
    length = 0
    while length < _MOST_BYTES:
        peer.settimeout(_left(deadline))
        if not (came := peer.recv(16384)):
            return
        length += len(came)
        yield came


def _explained(given: argparse.Namespace, address: str) -> str:
    """Ask again through gRPC, which understands every answer."""
    import grpc
    from grpc_health.v1 import health_pb2
    from grpc_health.v1.health_pb2_grpc import HealthStub

    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    channel = grpc.insecure_channel(address, options)
    if given.ca is not None:
        own = [open(path, "rb").read() if path else None for path in (given.key, given.cert)]  # noqa: SIM115
        if given.name:
            options.append(("grpc.ssl_target_name_override", given.name))
        with open(given.ca, "rb") as file:
            channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(file.read(), *own), options)
    try:
        with channel:
            stub: Any = HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=_service(given))
            status = stub.Check(request, timeout=given.timeout).status
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    serving = status == health_pb2.HealthCheckResponse.SERVING
    return "" if serving else str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def _service(given: argparse.Namespace) -> str:
    return SERVICE if given.service is None else str(given.service)


def _left(deadline: float) -> float:
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.strip().rpartition(":")
    if not port.isascii() or not port.isdigit():
        raise OSError(f"{address!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _port(address: str) -> int:
    return _split(address)[1]


def _is_loopback(address: str) -> bool:
    host, _ = _split(address)
    return host in ("localhost", "::1") or host.startswith("127.")


def _why(error: OSError) -> str:
    why = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {why}" if error.filename else why
