# SPDX-License-Identifier: Apache-2.0
import hashlib
import hmac
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_kvcache.identity import (
    Geometry,
    Group,
    Identity,
    WindowGroup,
    canon,
    ns_key,
    tenant_tag,
)

IDENTITY = Identity(weights="w", kv_format="bfloat16")
GEOMETRY = Geometry(64, (Group("kv", 2, 256),))

values = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


def text(value: str) -> bytes:
    return b"S" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"I" + value.to_bytes(8, "little", signed=True)


def test_ns_key_follows_the_documented_bytes():
    identity = b"R\x07\0\0\0"
    for name in ("weights", "kv_format", "tokenizer", "adapter", "positions", "codec", "attention"):
        value = getattr(IDENTITY, name)
        identity += text(name) + (b"N" if value is None else text(value))
    group = b"R\x03\0\0\0" + text("name") + text("kv")
    group += text("num_layers") + number(2) + text("bytes_per_page") + number(256)
    geometry = b"R\x04\0\0\0" + text("page_tokens") + number(64)
    geometry += text("groups") + b"T\x01\0\0\0" + group + text("layout") + text("")
    geometry += text("shard") + b"T\x02\0\0\0" + number(0) + number(1)
    tag = hmac.new(b"secret", text("alice"), "sha256").digest()
    raw = b"kt-kvcache/ns/2" + identity + geometry + b"B\x20\0\0\0" + tag
    expected = hashlib.sha256(raw).digest()
    assert ns_key(IDENTITY, GEOMETRY, tenant_tag(b"secret", "alice")) == expected


@given(values, values)
def test_different_values_encode_differently(a, b):
    assert (canon(a) == canon(b)) == (a == b and repr(a) == repr(b))


def test_no_field_can_pass_for_another():
    variants = [IDENTITY]
    for field in ("tokenizer", "adapter", "positions", "codec", "attention"):
        variants += [replace(IDENTITY, **{field: value}) for value in ("", "x")]
    variants += [replace(IDENTITY, weights="x"), replace(IDENTITY, weights=b"w")]
    variants.append(replace(IDENTITY, kv_format="x"))
    geometries = [
        GEOMETRY,
        replace(GEOMETRY, page_tokens=32),
        replace(GEOMETRY, layout="x"),
        replace(GEOMETRY, shard=(0, 2)),
        replace(GEOMETRY, shard=(1, 2)),
        replace(GEOMETRY, groups=(Group("kv", 4, 256),)),
        replace(GEOMETRY, groups=(Group("kv", 2, 256), Group("kv", 2, 256))),
    ]
    tags = [tenant_tag(b"s", tenant) for tenant in (None, "", "shared", "x")]
    tags.append(tenant_tag(b"t", "x"))
    keys = [ns_key(identity, GEOMETRY, None) for identity in variants]
    keys += [ns_key(IDENTITY, geometry, None) for geometry in geometries[1:]]
    keys += [ns_key(IDENTITY, GEOMETRY, tag) for tag in tags[1:]]
    for a, b in combinations(keys, 2):
        assert a != b


def test_integers_of_numpy_are_integers():
    group = Group("kv", np.int32(2), np.int64(256))
    geometry = Geometry(np.uint16(64), (group,), shard=(np.int8(0), np.int8(1)))
    assert canon(geometry) == canon(Geometry(64, (Group("kv", 2, 256),)))


def test_a_window_makes_another_namespace():
    groups = [Group("kv", 2, 256), WindowGroup("kv", 2, 256, 1), WindowGroup("kv", 2, 256, 2)]
    keys = {ns_key(IDENTITY, Geometry(64, (group,)), None) for group in groups}
    assert len(keys) == 3


def test_no_tenant_gives_the_same_key_in_every_store():
    assert tenant_tag(b"one", None) is tenant_tag(b"two", None) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Identity(weights="", kv_format="x"), r"\[kvstore.identity\] weights .* got ''"),
        (lambda: Geometry(0, GEOMETRY.groups), r"page_tokens must be an integer >= 1; got 0"),
        (lambda: Geometry(64, GEOMETRY.groups[0]), r"groups must be a tuple; got Group"),
        (lambda: Geometry(64, ("kv",)), r"each group must be a Group; got str"),
        (lambda: Geometry(64, GEOMETRY.groups, shard=(1,)), r"shard must be .*; got \(1,\)"),
        (lambda: WindowGroup("kv", 1, 1, 0), r"window must be an integer >= 1; got 0"),
        (
            lambda: Geometry(64, (WindowGroup("w", 1, 1, 8), Group("kv", 1, 1))),
            r"groups with a window must come after those without; got \['w', 'kv'\]",
        ),
        (lambda: Geometry(64, ()), r"groups must name at least one group; got none"),
        (lambda: Geometry(64, GEOMETRY.groups, shard=(2, 2)), r"rank .* in \[0, 1\]; got 2"),
        (lambda: Group("kv", True, 1), r"num_layers must be an integer >= 1; got True"),
        (lambda: Group("kv", 1, 0), r"bytes_per_page must be an integer >= 1; got 0"),
        (lambda: canon(1.5), r"value must be None, int, .* got float"),
        (lambda: canon(True), r"got bool"),
        (lambda: canon("\ud800"), r"a str must be Unicode; got '\\ud800'"),
        (lambda: Identity(123, "x"), r"weights must be a str or a bytes; got int"),
        (lambda: Identity("w", None), r"kv_format must be a str; got None"),
        (lambda: Identity("w", "x", adapter=1), r"adapter must be a str or a bytes; got int"),
        (lambda: Identity("w", "x", codec=b"c"), r"codec must be a str; got bytes"),
        (lambda: Group(1, 1, 1), r"name must be a str; got int"),
        (lambda: Geometry(64, GEOMETRY.groups, layout=None), r"layout must be a str; got None"),
        (lambda: canon(2**63), r"an int must have at most 64 bits; got 9223372036854775808"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
