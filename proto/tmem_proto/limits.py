"""Limits that the protocol sets."""

from tmem_proto.v1 import tmem_pb2 as pb

PAGE_SIZES = tuple(size for size in pb.PageSize.values() if size)
"""Bytes that a page of a pool, or a block of an export, may have."""
