# SPDX-License-Identifier: Apache-2.0
"""The bytes of a store's files: STORE, segment headers, page records. Packs and parses; no I/O.

All integers are little-endian; every structure ends with an XXH3_64 of what stands before it. What
does not parse exactly is None: nothing is guessed, nothing raised.

    STORE      magic 8, version u32, 0 u32, store id 16, tenant secret 32, checksum
    header     magic 8, version u32, record bytes u32, slot bytes u64, extent bytes u64,
               slots u32, page tokens u32, store id 16, segment id 16, zeros, checksum     (4 KiB)
    used       time of last use u64 (ns) for each slot, after the records: a hint, under no checksum
    record     magic 4, state u32, gen u64, page hash 32, parent hash 32, ns_key 32,
               position u32, body bytes u32, created u64 (ns), extent sums u64 x E, body, zeros,
               checksum seeded with the slot

A page's extents are seeded with ``extent_seed``: the payload of another page, of another slot or
of an earlier use of the slot fails verification whatever was written in which order.
"""

import struct
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_intdigest

from kt_kvcache.page_mover import ALIGN, num_extents

VERSION: Final = 1  # of STORE
_SEGMENT_VERSION = 2
USED_BYTES: Final = 8
HEADER_BYTES: Final = 4096  # a page of the file system, so that records start on their own sectors
ID_BYTES: Final = 16
SECRET_BYTES: Final = 32

_SECTOR = 512  # a drive writes at least this much at once: a record of one sector is never torn
_MAX_EXTENTS = 8  # 64 bytes of a record: one with 64 tokens still fits into a sector
_MIN_EXTENT_BYTES = 64 << 10  # below that, calls of the hash cost more than its bytes
# A digest of an image (9 + 32 bytes) fits into every record; larger extras are not stored.
_EXTRA_BYTES = 44

# Bounds of a header from anywhere, so that nothing large is made of it.
_MAX_SLOT_BYTES = 1 << 40
_MAX_SLOTS = 1 << 24
_MAX_PAGE_TOKENS = 1 << 16

_STORE_MAGIC = b"KTKVSTOR"
_SEGMENT_MAGIC = b"KTKVSEGM"
_RECORD_MAGIC = b"KTPG"
_STATE_PAGE, _STATE_FREE = 1, 2

_STORE = struct.Struct("<8sII16s32s")
_HEADER = struct.Struct("<8sIIQQII16s16s")
_RECORD = struct.Struct("<4sIQ32s32s32sIIQ")
_SUM = struct.Struct("<Q")

STORE_BYTES: Final = _STORE.size + _SUM.size
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SlotShape:
    """What pages of one size need: segments of one shape can hold them, of any namespace.

    Attributes:
        slot_bytes: payload of a page, a multiple of ALIGN.
        page_tokens: tokens per page.
    """

    slot_bytes: int
    page_tokens: int

    @property
    def extent_bytes(self) -> int:
        """Bytes under one checksum: an eighth of the slot, but not tiny ones."""
        eighth = -(-self.slot_bytes // _MAX_EXTENTS)
        return max(_MIN_EXTENT_BYTES, -(-eighth // ALIGN) * ALIGN)

    @property
    def num_extents(self) -> int:
        """Checksums per page, at most 8."""
        return num_extents(self.slot_bytes, self.extent_bytes)

    @property
    def record_bytes(self) -> int:
        """Bytes of a record, in whole sectors."""
        fixed = _RECORD.size + 8 * self.num_extents + _SUM.size
        body = 4 + 4 * self.page_tokens + 2 + _EXTRA_BYTES
        return -(-(fixed + body) // _SECTOR) * _SECTOR

    @property
    def num_bytes(self) -> int:
        """What a page takes on disk: slot, record and time of last use."""
        return self.slot_bytes + self.record_bytes + USED_BYTES

    @property
    def max_body_bytes(self) -> int:
        """Longest body (token ids and extras) that a record holds."""
        return self.record_bytes - _RECORD.size - 8 * self.num_extents - _SUM.size


@dataclass(frozen=True, slots=True)
class StoreFile:
    """What a root is: its id, and the secret that separates its tenants."""

    store_id: bytes
    secret: bytes


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What the slots of a segment are, and whose it is."""

    store_id: bytes
    segment_id: bytes
    shape: SlotShape
    num_slots: int


@dataclass(frozen=True, slots=True)
class PageName:
    """Where a page stands in the tree of all pages: what a hit is compared with.

    The methods make it a chain of one link, as ``PageIndex.publish`` takes it.
    """

    hash: bytes
    parent: bytes
    body: bytes
    ns_key: bytes
    position: int

    def page_hash(self, page: int) -> bytes:
        """Returns the page's hash."""
        return self.hash

    def parent_hash(self, page: int) -> bytes:
        """Returns the hash of the page before it, or the ns_key."""
        return self.parent

    def page_body(self, page: int) -> bytes:
        """Returns its token ids and extras."""
        return self.body


@dataclass(frozen=True, slots=True)
class Record:
    """What a slot holds. `name` is None for a freed slot, which keeps only its generation."""

    gen: int
    name: PageName | None = None
    created_ns: int = 0
    sums: tuple[int, ...] = ()


def extent_seed(page_hash: bytes, gen: int, slot: int) -> int:
    """Returns the seed of a page's first extent checksum; the next ones add 1 each."""
    mixed = xxh3_64_intdigest(struct.pack("<QQ", gen, slot))
    return (int.from_bytes(page_hash[:8], "little") ^ mixed) & _MASK


def pack_store(store: StoreFile) -> bytes:
    """Returns the bytes of a STORE file."""
    return _sealed(_STORE.pack(_STORE_MAGIC, VERSION, 0, store.store_id, store.secret))


def parse_store(raw: bytes) -> StoreFile | None:
    """Returns what a STORE file says, or None where it is not one of this version."""
    if len(raw) != STORE_BYTES or not _is_sealed(raw):
        return None
    magic, version, zero, store_id, secret = _STORE.unpack_from(raw)
    if (magic, version, zero) != (_STORE_MAGIC, VERSION, 0):
        return None
    return StoreFile(store_id, secret)


def pack_header(header: SegmentHeader) -> bytes:
    """Returns the first HEADER_BYTES of a segment's directory."""
    shape = header.shape
    packed = _HEADER.pack(
        _SEGMENT_MAGIC,
        _SEGMENT_VERSION,
        shape.record_bytes,
        shape.slot_bytes,
        shape.extent_bytes,
        header.num_slots,
        shape.page_tokens,
        header.store_id,
        header.segment_id,
    )
    return _sealed(packed.ljust(HEADER_BYTES - _SUM.size, b"\0"))


def parse_header(raw: bytes) -> SegmentHeader | None:
    """Returns what a directory's header says, or None where it is not one of this version."""
    if len(raw) != HEADER_BYTES or not _is_sealed(raw):
        return None
    magic, version, record_bytes, slot_bytes, extent_bytes, slots, tokens, store, segment = (
        _HEADER.unpack_from(raw)
    )
    if magic != _SEGMENT_MAGIC or version != _SEGMENT_VERSION:
        return None
    if slot_bytes % ALIGN or not ALIGN <= slot_bytes <= _MAX_SLOT_BYTES:
        return None
    if not (1 <= slots <= _MAX_SLOTS and 1 <= tokens <= _MAX_PAGE_TOKENS):
        return None
    shape = SlotShape(slot_bytes, tokens)
    if (shape.record_bytes, shape.extent_bytes) != (record_bytes, extent_bytes):
        return None
    return SegmentHeader(store, segment, shape, slots)


def pack_record(record: Record, shape: SlotShape, slot: int) -> bytes:
    """Returns the bytes of a slot's record; the body must fit (``max_body_bytes``)."""
    name = record.name
    if name is None:
        packed = _RECORD.pack(_RECORD_MAGIC, _STATE_FREE, record.gen, b"", b"", b"", 0, 0, 0)
    else:
        packed = _RECORD.pack(
            _RECORD_MAGIC,
            _STATE_PAGE,
            record.gen,
            name.hash,
            name.parent,
            name.ns_key,
            name.position,
            len(name.body),
            record.created_ns,
        )
        packed += b"".join(map(_SUM.pack, record.sums)) + name.body
    return _sealed(packed.ljust(shape.record_bytes - _SUM.size, b"\0"), slot)


def parse_record(raw: bytes | memoryview, shape: SlotShape, slot: int) -> Record | None:
    """Returns what a slot's record says; None for an empty one or anything not exactly right."""
    if len(raw) != shape.record_bytes or raw[:4] != _RECORD_MAGIC or not _is_sealed(raw, slot):
        return None
    _, state, gen, page_hash, parent, ns_key, position, body_bytes, created = _RECORD.unpack_from(
        raw
    )
    if state == _STATE_FREE:
        return Record(gen)
    if state != _STATE_PAGE or body_bytes > shape.max_body_bytes:
        return None
    if (position == 0) != (parent == ns_key):
        return None
    body_start = _RECORD.size + 8 * shape.num_extents
    sums = struct.unpack_from(f"<{shape.num_extents}Q", raw, _RECORD.size)
    body = bytes(raw[body_start : body_start + body_bytes])
    return Record(gen, PageName(page_hash, parent, body, ns_key, position), created, sums)


def _sealed(packed: bytes, seed: int = 0) -> bytes:
    return packed + _SUM.pack(xxh3_64_intdigest(packed, seed))


def _is_sealed(raw: bytes | memoryview, seed: int = 0) -> bool:
    end = len(raw) - _SUM.size
    (expected,) = _SUM.unpack_from(raw, end)
    return bool(xxh3_64_intdigest(raw[:end], seed) == expected)
