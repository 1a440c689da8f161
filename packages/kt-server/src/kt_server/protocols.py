# SPDX-License-Identifier: Apache-2.0
"""What the server needs from an engine, as a Protocol owned by the server. Declarations only."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from kt_runtime.core import EngineStats, FinishReason, Request, TokenEvent


class EngineClient(Protocol):
    """The face of `kt_runtime.Engine` that a server uses; all calls are made on the event loop."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        ...

    @property
    def closed_reason(self) -> str | None:
        """Why no more requests are taken, or None while they are."""
        ...

    def validate(self, request: Request) -> None:
        """Raises ContextLengthError or ValueError if `generate` would, for the request's sake."""
        ...

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """Events of one request; closing the generator early aborts it and frees its pages."""
        ...

    def abort(self, request_id: str, reason: FinishReason = "abort") -> None:
        """End a request that is being generated, and count it as ended for that reason."""
        ...

    def stats(self) -> EngineStats:
        """A snapshot; never waits for a step."""
        ...

    def close(self, reason: str = "the engine was closed") -> None:
        """End all requests and the engine's thread."""
        ...
