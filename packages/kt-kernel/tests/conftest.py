# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test of this package shares: a pool, a target, random numbers."""

from collections.abc import Iterator

import numpy as np
import pytest

from kt_kernel import Stream, ThreadPool, isa


@pytest.fixture(scope="session")
def pool() -> ThreadPool:
    return ThreadPool(2)


@pytest.fixture(params=isa.available())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    before = isa.active()
    isa.force(request.param)
    yield request.param
    isa.force(before)


@pytest.fixture
def stream(pool: ThreadPool, target: str) -> Stream:
    """Runs ops on each target in turn."""
    return Stream(pool)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
