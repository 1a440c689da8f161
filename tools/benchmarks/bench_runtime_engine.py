# SPDX-License-Identifier: Apache-2.0
"""kt-runtime: decode steps, a prefill of 512, what a step costs beside the model, and loading."""

from kt_runtime import Engine, EngineConfig, Request, SamplingParams
from kt_runtime.core import TokenEvent
from kt_runtime.exec.aside import Aside

from .inputs import CpuTime, Warm
from .synthetic_checkpoint import MIXTURE, TINY, checkpoint

PREFILL = 512
# Long enough that starting anew is rare, short enough that attention stays the same.
ANSWER = 256


def make_engine(shape: dict[str, int]) -> Engine:
    """One thread, as the kernels' benchmarks have; prompts are computed, not found."""
    config = EngineConfig(
        weight_format="int8", num_threads=1, num_pages=512, enable_prefix_cache=False
    )
    return Engine.from_pretrained(checkpoint(**shape), config)


class Streams:
    """An engine that always decodes for as many requests."""

    def __init__(self, shape: dict[str, int], num_streams: int, temperature: float = 0.0) -> None:
        self.engine = make_engine(shape)
        self.num_streams, self.temperature, self.count = num_streams, temperature, 0
        self.aside = Aside("kt-bench-aside")

    def step(self) -> None:
        self._refill()
        self.engine.step()

    def step_overlapped(self) -> None:
        self._refill()
        self.engine.step_overlapped(self.aside, self._take)

    def _refill(self) -> None:
        if self.engine.has_work:
            return
        for _ in range(self.num_streams):
            self.count += 1
            # A prompt of one token is computed like a decode.
            sampling = SamplingParams(
                temperature=self.temperature,
                top_p=0.9,
                seed=self.count,
                max_tokens=ANSWER,
                ignore_eos=True,
            )
            self.engine.add(Request(f"{self.count}", (self.count % 100,), sampling))

    def _take(self, events: list[TokenEvent]) -> None:
        pass


class Decode(CpuTime):
    params = (1, 8)
    param_names = ("streams",)

    def prepare(self, streams):
        self.streams = Streams(MIXTURE, streams)

    def time_step(self, streams):
        self.streams.step()


class Prefill(CpuTime):
    def prepare(self):
        self.engine, self.count = make_engine(MIXTURE), 0

    def time_prefill_512(self):
        self.count += 1
        ids = tuple((7 * i + self.count) % 8192 for i in range(PREFILL))
        self.engine.add(Request(f"{self.count}", ids, SamplingParams(max_tokens=0)))
        while self.engine.has_work:
            self.engine.step()


class Overhead(CpuTime):
    """Steps of a model with next to no arithmetic: scheduling, batch, replay, tokens, events."""

    params = ((1, 16), (0.0, 0.8))
    param_names = ("streams", "temperature")

    def prepare(self, streams, temperature):
        self.streams = Streams(TINY, streams, temperature)

    def time_step(self, streams, temperature):
        self.streams.step()

    def time_step_overlapped(self, streams, temperature):
        self.streams.step_overlapped()


class Share:
    """Which part of a decode step no forward runs in, in percent, by the engine's own clock."""

    params = (1, 8)
    param_names = ("streams",)
    unit = "%"

    def track_outside_the_model(self, streams):
        running = Streams(MIXTURE, streams)
        for _ in range(ANSWER):
            running.step_overlapped()
        stats = running.engine.stats()
        return 100 * (1 - stats.forward_seconds["decode"] / stats.step_seconds["decode"])


class Load(CpuTime):
    """Opening, packing and the first decode of 13 million bf16 weights."""

    def prepare(self):
        checkpoint(**MIXTURE)

    def time_load(self):
        make_engine(MIXTURE).close()


class Wake(Warm):
    """A decode step with its wake-ups. Wall time."""

    def prepare(self):
        self.streams = Streams(TINY, 1)

    def time_step(self):
        self.streams.step()

    def time_step_overlapped(self):
        self.streams.step_overlapped()
