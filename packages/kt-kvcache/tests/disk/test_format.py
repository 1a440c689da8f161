# SPDX-License-Identifier: Apache-2.0
"""The bytes of the files: golden ones, and what hostile ones do: nothing."""

import hashlib
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_kvcache.disk.format import (
    HEADER_BYTES,
    STORE_BYTES,
    PageName,
    Record,
    SegmentHeader,
    SlotShape,
    StoreFile,
    extent_seed,
    pack_header,
    pack_record,
    pack_store,
    parse_header,
    parse_record,
    parse_store,
)

SHAPE = SlotShape(1 << 20, 64)
HEADER = SegmentHeader(b"s" * 16, b"i" * 16, SHAPE, 1000)
STORE = StoreFile(b"s" * 16, b"x" * 32)
NAME = PageName(b"h" * 32, b"p" * 32, bytes(range(256)) + b"body", b"n" * 32, 7)
RECORD = Record(9, NAME, 1_700_000_000_000_000_000, tuple(range(8)))


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def test_golden_bytes():
    assert digest(pack_store(STORE)) == "5dfb7ba845bda73c"
    assert digest(pack_header(HEADER)) == "1a78f5344ab35389"
    assert digest(pack_record(RECORD, SHAPE, 3)) == "7ffa9bea585d8c16"
    assert digest(pack_record(Record(9), SHAPE, 3)) == "76c7631882555b62"
    assert extent_seed(b"h" * 32, 9, 3) == 11080316727175012735


def test_sizes():
    assert SHAPE.record_bytes == 512
    assert (SHAPE.extent_bytes, SHAPE.num_extents) == (128 << 10, 8)
    assert SHAPE.max_body_bytes >= 4 + 4 * 64 + 2 + 41  # and an image's digest
    assert SlotShape(4096, 256).record_bytes == 1536
    assert SlotShape(4096, 16).num_extents == 1
    assert SlotShape(100 << 20, 64).num_extents == 8
    assert len(pack_header(HEADER)) == HEADER_BYTES
    assert len(pack_store(STORE)) == STORE_BYTES


def test_what_is_packed_parses():
    assert parse_store(pack_store(STORE)) == STORE
    assert parse_header(pack_header(HEADER)) == HEADER
    assert parse_record(pack_record(RECORD, SHAPE, 3), SHAPE, 3) == RECORD
    assert parse_record(pack_record(Record(9), SHAPE, 3), SHAPE, 3) == Record(9)
    longest = replace(NAME, body=b"b" * SHAPE.max_body_bytes)
    packed = pack_record(replace(RECORD, name=longest), SHAPE, 0)
    assert len(packed) == 512
    assert parse_record(packed, SHAPE, 0).name == longest
    first = replace(NAME, position=0, parent=NAME.ns_key)
    assert parse_record(pack_record(replace(RECORD, name=first), SHAPE, 0), SHAPE, 0).name == first


def test_a_record_of_another_slot_or_without_sense_is_none():
    packed = pack_record(RECORD, SHAPE, 3)
    assert parse_record(packed, SHAPE, 4) is None
    assert parse_record(packed, SlotShape(1 << 20, 256), 3) is None
    assert parse_record(bytes(512), SHAPE, 0) is None
    assert parse_record(b"", SHAPE, 0) is None
    assert (
        parse_record(
            pack_record(replace(RECORD, name=replace(NAME, position=0)), SHAPE, 3), SHAPE, 3
        )
        is None
    )
    rootless = replace(NAME, parent=NAME.ns_key)
    assert parse_record(pack_record(replace(RECORD, name=rootless), SHAPE, 3), SHAPE, 3) is None


def test_every_flipped_bit_is_noticed():
    for packed, parse in (
        (pack_store(STORE), parse_store),
        (pack_record(RECORD, SHAPE, 3), lambda raw: parse_record(raw, SHAPE, 3)),
        (pack_header(HEADER), parse_header),
    ):
        rng = random.Random(1)
        bits = range(8 * len(packed)) if len(packed) < 600 else rng.sample(range(8 * 4096), 2000)
        for bit in bits:
            raw = bytearray(packed)
            raw[bit // 8] ^= 1 << bit % 8
            assert parse(bytes(raw)) is None, bit


@pytest.mark.parametrize(
    "change",
    [
        {"shape": SlotShape(4097, 64)},
        {"shape": SlotShape(1 << 41, 64)},
        {"shape": SlotShape(4096, 1 << 17)},
        {"num_slots": 0},
        {"num_slots": 1 << 25},
    ],
)
def test_a_sealed_header_out_of_bounds_is_none(change):
    assert parse_header(pack_header(replace(HEADER, **change))) is None


@given(st.binary(max_size=600), st.integers(0, 2**40))
def test_no_bytes_raise(raw, slot):
    assert parse_store(raw) is None
    assert parse_header(raw.ljust(HEADER_BYTES, raw[:1] or b"\0")) is None
    assert parse_record(raw, SHAPE, slot) is None
    assert parse_record(b"KTPG" + raw.ljust(508, b"\0")[:508], SHAPE, slot) is None


def test_seeds_differ_by_page_generation_and_slot():
    seeds = {
        extent_seed(bytes([h]) * 32, gen, slot) for h in (1, 2) for gen in (1, 2) for slot in (1, 2)
    }
    assert len(seeds) == 8
