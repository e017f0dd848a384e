"""The log: one line per event on standard error, in one format, whatever its source.

Text, or JSON with one object per line; lines for systemd's journal begin with their priority. What libraries write to
descriptor 2 becomes log lines. Logging never blocks on the reader.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import logging
import os
import re
import sys
import time
from typing import TYPE_CHECKING

from tmemd.base.log_streams import BackgroundWriter, CapturedStderr

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("tmemd")

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}

# As absl has it: E0000 00:00:1764543600.123456  4242 ssl_transport_security.cc:1857] Handshake failed ...
_OF_GRPC = re.compile(r"([IWEF])\d{4} [\d:. ]+ +(\d+) ([\w./-]+:\d+)\] (.*)")
_NO_NEWS = "All log messages before absl::InitializeLog()"
_TOLD = "Failed to add port"
"""The daemon's own log."""
_HANDSHAKES = "TLS handshakes failed"
_HANDSHAKE = re.compile(r"[Hh]andshake (?:failed|error)|SSL_ERROR|WRONG_VERSION_NUMBER")


class Text(logging.Formatter):
    """`TIME LEVEL PROCESS: message`; without the time in the journal, which has its own."""

    def __init__(self, process: str, journal: bool) -> None:
        time = "" if journal else "%(asctime)s "
        super().__init__(f"{time}%(levelname)s {process}: %(message)s")


class Json(logging.Formatter):
    """An object with `time`, `level`, `process` and `message`, and `trace` if there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "time": f"{at}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


class Handler(logging.Handler):
    """Writes to standard error without blocking."""

    def __init__(self, process: str, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._process = process
        self._journal = reads_journal(environment)
        self.style("text")
        self._captured = CapturedStderr(self._heard, self._dropped)
        self._of_grpc: dict[str, RateLimitedWarning] = {}
        """By the place in its sources: whoever reaches the port can have it say the same again and again."""
        faulthandler.enable(self.outlet.descriptor)
        atexit.register(self._captured.close)

    @property
    def outlet(self) -> BackgroundWriter:
        return self._captured.outlet

    def style(self, named: str) -> None:
        """Set the format."""
        self.setFormatter(Json(self._process) if named == "json" else Text(self._process, self._journal))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.outlet.write(self._line(record))
        except Exception:
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        text = self.format(record)
        if self._journal:
            priority = f"<{_PRIORITIES.get(record.levelno, 5)}>"
            text = "\n".join(priority + line for line in text.splitlines())
        return f"{text}\n".encode(errors="backslashreplace")

    def _dropped(self, count: int) -> bytes:
        why = f"{count} log lines were dropped: nobody read standard error"
        return self._line(logging.LogRecord("tmemd", logging.WARNING, __file__, 0, why, None, None))

    def _heard(self, line: str) -> None:
        """Log a line that a library wrote to descriptor 2."""
        if not line.strip() or _NO_NEWS in line:
            return
        found = _OF_GRPC.match(line)
        if found is None:
            log.warning("%s", line)
        elif _TOLD in found[4]:
            log.debug("gRPC: %s (%s)", found[4], found[3])
        else:
            what = _HANDSHAKES if _HANDSHAKE.search(found[4]) else f"gRPC says at {found[3]}"
            self._of_grpc.setdefault(what, RateLimitedWarning(what)).warn(found[4])


_handler: Handler | None = None


def log_to_stderr(process: str = "tmemd", style: str = "text", level: str = "info") -> None:
    """Start logging, or change its format and level."""
    global _handler
    if _handler is None:
        _handler = Handler(process, os.environ)
        logging.basicConfig(handlers=[_handler])
    _handler.style(style)
    logging.getLogger().setLevel(level.upper())


def log_fatal(why: str) -> None:
    """Log why the daemon ends: as bare text, or as an object where the log is JSON."""
    if _handler is None:
        print(f"tmemd: {why}", file=sys.stderr)
    elif isinstance(_handler.formatter, Json):
        log.critical("%s", why)
    else:
        _handler.outlet.write(f"tmemd: {why}\n".encode(errors="backslashreplace"))


def stderr_descriptor() -> int:
    """The original standard error, for child processes."""
    return 2 if _handler is None else _handler.outlet.descriptor


def reads_journal(environment: Mapping[str, str]) -> bool:
    """Whether standard error goes to systemd's journal."""
    try:
        its = os.fstat(2)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{its.st_dev}:{its.st_ino}"


class RateLimitedWarning:
    """A frequent warning, logged at most once per interval, with how often it occurred.

    `about` must be text of ours, not a client's.
    """

    def __init__(self, message: str, every: float = 10.0, begun: bool = False) -> None:
        """`begun`: it was logged just now."""
        self._message = message
        self._every = every
        self._due = 0
        self._written_at = time.monotonic() if begun else -every

    def warn(self, about: str = "") -> None:
        self._due += 1
        now = time.monotonic()
        if now - self._written_at >= self._every:
            times = f" ({self._due} times since last logged)" if self._due > 1 else ""
            log.warning("%s%s%s", self._message, f": {about}" if about else "", times)
            self._written_at, self._due = now, 0


class RateLimitedErrors:
    """Errors that recur: each is logged with its trace the first time, then rarely, with how often it occurred."""

    _EVERY = 600.0
    _MOST = 256

    def __init__(self) -> None:
        self._seen: dict[str, RateLimitedWarning] = {}

    def log(self, what: str, error: Exception) -> None:
        key = f"{what}: {type(error).__name__}: {error}"
        if key in self._seen:
            self._seen[key].warn()
            return
        if len(self._seen) >= self._MOST:
            self._seen.clear()
        self._seen[key] = RateLimitedWarning(key, self._EVERY, begun=True)
        log.error("%s", what, exc_info=error)
