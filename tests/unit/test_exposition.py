"""The metrics' server: how it ends."""

import threading
import urllib.request
from contextlib import closing

from prometheus_client import CollectorRegistry

from tests.support import PATIENCE
from tmemd.exposition import Exposition

HOUR = 3600.0


def test_shutting_down_does_not_wait_for_the_next_look() -> None:
    server = Exposition(("127.0.0.1", 0), CollectorRegistry(), None, None)
    serving = threading.Thread(target=server.serve_forever, args=(HOUR,), daemon=True)
    serving.start()
    with closing(server.socket):
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as page:
            assert page.status == 200
        ending = threading.Thread(target=server.shutdown, daemon=True)
        ending.start()
        ending.join(PATIENCE)
        serving.join(PATIENCE)
    assert not any(thread.is_alive() for thread in (ending, serving))
