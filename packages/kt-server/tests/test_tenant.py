# SPDX-License-Identifier: Apache-2.0
"""Who shares cached prefixes with whom."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import TestClient

from .conftest import chat_body, completion_body
from .fake_engine import FakeEngine

ENDPOINTS = [("/v1/chat/completions", chat_body), ("/v1/completions", completion_body)]


@pytest.mark.parametrize(("url", "body"), ENDPOINTS)
async def test_the_api_key_decides_and_a_salt_only_divides(
    client: TestClient, engine: FakeEngine, url: str, body
) -> None:
    async def tenant(authorization: str | None = None, **fields: object) -> str | None:
        headers = {} if authorization is None else {"Authorization": authorization}
        response = await client.post(url, json=body(**fields), headers=headers)
        assert response.status == 200
        return engine.requests[-1].tenant

    alice = await tenant("Bearer alice")
    assert alice is not None
    assert "alice" not in alice
    assert await tenant("bearer  alice ") == alice
    # Fields that anybody may set do not make somebody else of a client.
    assert await tenant("Bearer bob", user="alice") == await tenant("Bearer bob")
    salted = {
        await tenant(*key, **fields)
        for key in ((), ("Bearer alice",), ("Bearer bob",), ("Basic alice",))
        for fields in ({}, {"cache_salt": ""}, {"cache_salt": "alice"}, {"cache_salt": alice})
    }
    assert len(salted) == 16


@pytest.mark.parametrize("headers", [{}, {"Authorization": ""}, {"Authorization": "Bearer "}])
async def test_requests_without_a_key_share_one(
    client: TestClient, engine: FakeEngine, headers: dict[str, str]
) -> None:
    response = await client.post(ENDPOINTS[0][0], json=chat_body(), headers=headers)
    assert response.status == 200
    assert engine.requests[0].tenant is None
