# SPDX-License-Identifier: Apache-2.0
"""Model graphs, paged KV, scheduler and engine for Mixture-of-Experts models: the public names.

Names are imported when first used, so that parts without tensors (scheduler, text) load without
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kt_runtime.config import EngineConfig
    from kt_runtime.core import (
        ContextLengthError,
        EngineClosedError,
        EngineStats,
        InvalidFieldError,
        QueueFullError,
        Request,
        SamplingParams,
        TokenEvent,
        TokenLogprobs,
    )
    from kt_runtime.engine import Engine
    from kt_runtime.llm import LLM, Completion

_HOMES = {
    "Completion": "llm",
    "ContextLengthError": "core",
    "Engine": "engine",
    "EngineClosedError": "core",
    "EngineConfig": "config",
    "EngineStats": "core",
    "InvalidFieldError": "core",
    "LLM": "llm",
    "QueueFullError": "core",
    "Request": "core",
    "SamplingParams": "core",
    "TokenEvent": "core",
    "TokenLogprobs": "core",
}

__all__ = (
    "LLM",
    "Completion",
    "ContextLengthError",
    "Engine",
    "EngineClosedError",
    "EngineConfig",
    "EngineStats",
    "InvalidFieldError",
    "QueueFullError",
    "Request",
    "SamplingParams",
    "TokenEvent",
    "TokenLogprobs",
)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("kt-runtime")
    if name not in _HOMES:
        raise AttributeError(f"module 'kt_runtime' has no attribute {name!r}")
    return getattr(import_module(f"kt_runtime.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*__all__, "__version__"))
