# SPDX-License-Identifier: Apache-2.0
"""Types of the compiled core (csrc/python/bind_*.cpp)."""

def chain_hash(
    parent: bytes,
    tokens: bytes | bytearray | memoryview,
    page_tokens: int,
    path: str | None = None,
) -> bytes: ...
def hash_paths() -> list[str]: ...
