# SPDX-License-Identifier: Apache-2.0
"""What the handlers share: the model that is served, its settings, and whether it is shutting
down."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from aiohttp import web

from kt_runtime.text import ChatTemplate, Tokenizer
from kt_server import __version__
from kt_server.metrics import ServerMetrics
from kt_server.protocols import EngineClient
from kt_server.sampling import SamplingDefaults


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of one server.

    Attributes:
        sampling_defaults: of the checkpoint.
        max_body_bytes: larger requests are answered with 413. 64 MiB holds the longest contexts in
            use many times over; aiohttp's own limit of 1 MiB is less than one agent's request.
        keepalive_s: a stream that is silent for so long gets a comment, since proxies cut
            connections that are idle for 60 s and a long prompt can take longer.
        drain_s: how long requests in flight may go on after a shutdown began.
    """

    sampling_defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    max_body_bytes: int = 64 << 20
    keepalive_s: float = 15.0
    drain_s: float = 5.0


@dataclass(slots=True)
class Served:
    """One model behind one server.

    Attributes:
        chat_template: None for base models, which complete but do not chat.
        created: when serving began, in Unix seconds.
        draining: a shutdown began; new requests are refused.
        num_in_flight: requests being answered.
        system_fingerprint: equal ones and equal seeds mean equal answers: version, kernel target,
            weight format.
    """

    engine: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    model_name: str
    config: ServerConfig
    metrics: ServerMetrics
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    num_in_flight: int = 0
    system_fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        stats = self.engine.stats()  # O(pages), hence once and not per request
        self.system_fingerprint = f"kt-{__version__}-{stats.kernel_target}-{stats.weight_format}"


SERVED = web.AppKey("served", Served)
