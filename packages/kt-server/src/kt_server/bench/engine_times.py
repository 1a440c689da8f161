# SPDX-License-Identifier: Apache-2.0
"""How much of a decode step is the model: a KT server's own account, read from its /metrics."""

from __future__ import annotations

from typing import NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families


class DecodeTimes(NamedTuple):
    """Sums over decode steps (those without prompt tokens).

    Attributes:
        steps: how many.
        step_s: seconds in them.
        forward_s: those of them in which the model ran; the rest is scheduling, sampling, Python.
    """

    steps: float
    step_s: float
    forward_s: float

    def __sub__(self, before: DecodeTimes) -> DecodeTimes:
        """What came since `before`."""
        return DecodeTimes(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def share_outside(self) -> float:
        """Which part of the steps' time the model did not run, 0 to 1."""
        return 1 - self.forward_s / self.step_s if self.step_s else 0.0


class EngineTimes:
    """Reads one server's counters.

    Args:
        session: of aiohttp.
        url: the server's, without /v1.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/metrics"

    async def read(self) -> DecodeTimes | None:
        """The sums since the server started; None of a server that does not count them."""
        try:
            async with self._session.get(self._url) as response:
                text = await response.text() if response.status == 200 else ""
            samples = {
                sample.name: sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.labels.get("phase") == "decode"
            }
            return DecodeTimes(
                samples["kt_engine_phase_steps_total"],
                samples["kt_engine_step_seconds_total"],
                samples["kt_engine_forward_seconds_total"],
            )
        except (aiohttp.ClientError, OSError, ValueError, KeyError):
            return None
