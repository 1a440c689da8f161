# SPDX-License-Identifier: Apache-2.0
"""Whose cached prefixes a request may meet. It checks no keys: who may ask at all is not decided
here."""

from __future__ import annotations

import hashlib
import json

from aiohttp import web


def tenant_of(http_request: web.Request, cache_salt: str | None) -> str | None:
    """The tenant of a request: its API key, and within that its cache_salt.

    The key decides, so nothing that a client may put into a request's body reaches another key's
    pages; a salt only divides a key's own. Requests with neither share one tenant, None. The key
    itself is not kept: the store makes its namespaces of this string and a secret of its own.
    """
    given = http_request.headers.get("Authorization", "").strip()
    scheme, _, rest = given.partition(" ")
    key = rest.strip() if scheme.lower() == "bearer" else given
    if not key and cache_salt is None:
        return None
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest() if key else None
    return json.dumps([digest, cache_salt])
