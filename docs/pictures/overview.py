"""Who uses a store, by which protocol, and where its pages lie."""

from docs.pictures import svg

_WIDTH, _HEIGHT = 880, 404
_LEFT, _LEFT_WIDTH = 20, 318
_RIGHT, _RIGHT_WIDTH = 460, 400
_CLIENTS = [
    ("Kernel, QEMU, libnbd, fio", "swap and disks in another host's memory", "NBD, TLS"),
    ("tmem san, in front of a slow volume", "reads from spare memory, misses from the SAN", "NBD, TLS"),
    ("Python, on any host", "tmem.connect(…): pages, caches of files", "gRPC, TLS"),
]
_SERVERS = [
    ("block front", "native threads, no Python for a request", 2),
    ("page service, metrics, rights", "batches of pages, LZ4 on the wire", 1),
]


def draw() -> str:
    """The picture of README's first screen."""
    title = "Hosts that need memory reach tmemd by NBD or gRPC; its engine keeps their pages compressed in one arena."
    heads = [
        svg.text(_LEFT, 34, "Hosts that need memory", "strong"),
        svg.text(_RIGHT, 34, "A host with memory to spare", "strong"),
    ]
    clients = [part for row, client in enumerate(_CLIENTS) for part in _client(row, *client)]
    return svg.document(_WIDTH, _HEIGHT, title, [*heads, *clients, *_daemon(), *_arena(), *_local()])


def _top(row: int) -> int:
    return 50 + 64 * row


def _client(row: int, name: str, what: str, protocol: str) -> list[str]:
    top, middle = _top(row), _top(row) + 25
    end = _LEFT + _LEFT_WIDTH
    return [
        svg.rect(_LEFT, top, _LEFT_WIDTH, 50),
        *_label(_LEFT + 12, top, name, what),
        svg.line(end, middle, _RIGHT - 8, middle),
        svg.tip(_RIGHT, middle, 1, 0),
        svg.text((end + _RIGHT) / 2, middle - 7, protocol, "small", "middle"),
    ]


def _label(x: int, top: int, name: str, what: str) -> list[str]:
    return [svg.text(x, top + 21, name), svg.text(x, top + 39, what, "small")]


def _daemon() -> list[str]:
    parts = []
    row = 0
    for name, what, rows in _SERVERS:
        parts.append(svg.rect(_RIGHT, _top(row), _RIGHT_WIDTH, 64 * rows - 14))
        parts += _label(_RIGHT + 12, _top(row) + 32 * (rows - 1), f"tmemd: {name}", what)
        row += rows
    return parts


def _arena() -> list[str]:
    engine, arena = 266, 330
    middle = _RIGHT + _RIGHT_WIDTH // 2
    width = _RIGHT_WIDTH / 4
    shards = [svg.line(_RIGHT + width * shard, arena + 10, _RIGHT + width * shard, arena + 40) for shard in (1, 2, 3)]
    names = [svg.text(_RIGHT + width * (n + 0.5), arena + 30, f"shard {n}", "", "middle") for n in range(4)]
    return [
        svg.line(middle, _top(2) + 50, middle, engine - 8),
        svg.tip(middle, engine, 0, 1),
        svg.rect(_RIGHT, engine, _RIGHT_WIDTH, 40, "key"),
        svg.text(middle, engine + 25, "engine: compress, verify, place, evict", "", "middle"),
        svg.line(middle, engine + 40, middle, arena - 8),
        svg.tip(middle, arena, 0, 1),
        svg.rect(_RIGHT, arena, _RIGHT_WIDTH, 50, "key"),
        *shards,
        *names,
    ]


def _local() -> list[str]:
    top = 330
    return [
        svg.rect(_LEFT, top, _LEFT_WIDTH, 50),
        *_label(
            _LEFT + 12, top, "Python, on the host with the memory", "shm:// and tmem.open(): engine in the process"
        ),
        svg.line(_LEFT + _LEFT_WIDTH, top + 25, _RIGHT - 8, top + 25),
        svg.tip(_RIGHT, top + 25, 1, 0),
        svg.text((_LEFT + _LEFT_WIDTH + _RIGHT) / 2, top + 18, "shared memory", "small", "middle"),
        svg.text(_RIGHT, 396, "the arena: one file in shared memory; survives kill -9", "small"),
    ]
