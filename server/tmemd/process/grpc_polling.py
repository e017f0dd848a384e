"""How gRPC polls its sockets in this process. To be imported before gRPC, which reads its environment when it is.

gRPC is told to poll itself rather than have its event engine do so, unless the environment says otherwise: a batch then
costs the daemon a tenth to a sixth less processor time, as fewer threads hand it on
(docs/adr/0010-one-stream-for-single-batches.md).
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
