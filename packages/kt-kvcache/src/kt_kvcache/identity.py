# SPDX-License-Identifier: Apache-2.0
"""Who may share KV bytes with whom: the namespace key of a space; it hashes no tokens.

    ns_key = SHA256("kt-kvcache/ns/2" || canon(identity) || canon(geometry) || canon(tenant_tag))
    tenant_tag = HMAC-SHA256(store secret, canon(tenant)), or None where no tenant was named

``canon`` tags every value with its type and prefixes its length, so that different values never
encode to the same bytes: ("a", "bc") and ("ab", "c") differ, and so do None and "".

    None   N
    int    I  i64
    str    S  u32 length, UTF-8
    bytes  B  u32 length, bytes
    tuple  T  u32 count, items
    record R  u32 count, then per field: name as str, value          (all integers little-endian)
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from kt_kvcache.errors import require_int, require_type

_NAMESPACE_DOMAIN = b"kt-kvcache/ns/2"


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything about a model that changes the KV bytes of the same tokens.

    Names do not belong here: two checkpoints may share one, and one checkpoint may have two.

    Attributes:
        weights: digest of the weights and their configuration.
        kv_format: element type of the cache and its scale rule, such as "bfloat16".
        tokenizer: digest of the tokenizer, or None where token ids are all there is.
        adapter: digest of the adapter (LoRA), or None for the base model.
        positions: position encoding if the caller overrides the checkpoint's, else None.
        codec: version of the quantisation or codec applied to the cache, or None.
        attention: version of the attention kernel's layout, or None for plain rows.
    """

    weights: str | bytes
    kv_format: str
    tokenizer: str | bytes | None = None
    adapter: str | bytes | None = None
    positions: str | bytes | None = None
    codec: str | None = None
    attention: str | None = None

    def __post_init__(self) -> None:
        require_type("identity", "weights", self.weights, str, bytes)
        require_type("identity", "kv_format", self.kv_format, str)
        for name in ("tokenizer", "adapter", "positions"):
            if (value := getattr(self, name)) is not None:
                require_type("identity", name, value, str, bytes)
        for name in ("codec", "attention"):
            if (value := getattr(self, name)) is not None:
                require_type("identity", name, value, str)
        if not self.weights:
            raise ValueError(
                f"[kvstore.identity] weights must be a digest, not empty; got {self.weights!r}"
            )


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive layer buffers whose pages have one size.

    GQA is one group, or two where k and v lie apart; MLA is one group of latents; layers with a
    sliding window are a ``WindowGroup``.

    Attributes:
        name: such as "kv", or "k" and "v" where they lie in separate buffers.
        num_layers: buffers in the group.
        bytes_per_page: bytes of one page in one of these buffers.
    """

    name: str
    num_layers: int
    bytes_per_page: int

    def __post_init__(self) -> None:
        require_type("group", "name", self.name, str)
        require_int("group", "num_layers", self.num_layers, 1)
        require_int("group", "bytes_per_page", self.bytes_per_page, 1)


@dataclass(frozen=True, slots=True)
class WindowGroup(Group):
    """A group whose layers look at no token more than `window` tokens back.

    Of a prefix that was loaded from disk, the bytes of this group are there only for its last
    `window` tokens: those before are undefined. A class of its own, so that the namespaces of
    models without windows are what they were.

    Attributes:
        window: tokens.
    """

    window: int

    def __post_init__(self) -> None:
        Group.__post_init__(self)  # super() does not know a class with slots
        require_int("group", "window", self.window, 1)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the KV of `page_tokens` tokens is laid out in memory.

    Attributes:
        page_tokens: tokens per page.
        groups: the layers, in the order of the arena's buffers; those with a window come last.
        layout: name of the order of axes inside a page.
        shard: (rank, world size) of the part of the model this process holds.
    """

    page_tokens: int
    groups: tuple[Group, ...]
    layout: str = ""
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        require_int("geometry", "page_tokens", self.page_tokens, 1)
        require_type("geometry", "groups", self.groups, tuple)
        if not self.groups:
            raise ValueError("[kvstore.geometry] groups must name at least one group; got none")
        for group in self.groups:
            require_type("geometry", "each group", group, Group)
        require_type("geometry", "layout", self.layout, str)
        kinds = [isinstance(group, WindowGroup) for group in self.groups]
        if kinds != sorted(kinds):
            raise ValueError(
                "[kvstore.geometry] groups with a window must come after those without; got "
                f"{[group.name for group in self.groups]}"
            )
        if not isinstance(self.shard, tuple) or len(self.shard) != 2:
            raise ValueError(
                f"[kvstore.geometry] shard must be (rank, world size); got {self.shard!r}"
            )
        rank, world_size = self.shard
        require_int("geometry", "shard world size", world_size, 1)
        require_int("geometry", "shard rank", rank, 0, world_size - 1)


def canon(value: Any) -> bytes:
    """Returns the canonical encoding of None, int, str, bytes, tuple or a dataclass of these."""
    if value is None:
        return b"N"
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"[kvstore.canon] an int must have at most 64 bits; got {value}")
        return b"I" + struct.pack("<q", value)
    if isinstance(value, str):
        try:
            raw = value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
            raise ValueError(f"[kvstore.canon] a str must be Unicode; got {value!r}") from None
        return b"S" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"T" + struct.pack("<I", len(value)) + b"".join(map(canon, value))
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        body = b"".join(canon(name) + canon(getattr(value, name)) for name in names)
        return b"R" + struct.pack("<I", len(names)) + body
    raise ValueError(
        "[kvstore.canon] value must be None, int, str, bytes, tuple or a dataclass of these; "
        f"got {type(value).__name__}"
    )


def tenant_tag(secret: bytes, tenant: str | None) -> bytes | None:
    """Returns the tenant's tag under this store's secret; None (no tenant) has no tag."""
    return None if tenant is None else hmac.digest(secret, canon(tenant), "sha256")


def ns_key(identity: Identity, geometry: Geometry, tag: bytes | None) -> bytes:
    """Returns the 32-byte namespace key, h_0 of every chain in the namespace."""
    parts = (_NAMESPACE_DOMAIN, canon(identity), canon(geometry), canon(tag))
    return hashlib.sha256(b"".join(parts)).digest()
