# SPDX-License-Identifier: Apache-2.0
"""EngineConfig: every setting of the engine, validated once at the edge. Reads no environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from kt_runtime.core import is_whole

WeightFormat = Literal["native", "float32", "bf16", "int8", "int4"]
KVDtype = Literal["auto", "float32", "bf16"]
Backend = Literal["kt", "torch"]
SchedulePolicy = Literal["fcfs", "priority"]
KVWritePolicy = Literal["through", "selective", "back"]
KVIo = Literal["auto", "threads", "uring"]
ModelIdentity = Literal["sampled", "full"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine.

    Attributes:
        weight_format: how matrices are stored and multiplied. "native" keeps the checkpoint's own
            dtype; "float32" means weights, activations and KV all float32; "int4" packs routed
            experts to int4 and everything else to int8 (see `checkpoint.formats`).
        group_size: weights per scale of int8 and int4: 32, 64 or 128.
        device: "auto" or "cpu".
        backend: which Ops run the model: "kt" (kt_kernel) or "torch" (plain PyTorch: the oracle,
            and for debugging).
        kv_dtype: "auto" is float32 under weight_format="float32", else bf16.
        kv_page_size: tokens per KV page.
        num_pages: KV pages; None sizes the pool for `kv_cpu_memory_gb`.
        kv_cpu_memory_gb: memory for KV pages, in 10^9 bytes, when num_pages is None.
        kv_disk_path: a directory that keeps KV pages between starts and for what memory does not
            hold; any number of processes may share it. None keeps them in memory only.
        kv_disk_gb: most that it may take of the disk, in 10^9 bytes, of all processes together.
        kv_io: how they are read and written: "threads" or "uring" (Linux's io_uring); "auto" is
            io_uring where the system lets us use it.
        kv_write_policy: which KV pages are written to kv_disk_path, and when: "through": all, at
            once; "selective": those that two requests have had; "back": those that memory would
            soon evict, and at the end the rest.
        kv_daily_write_gb: most that is written there in 24 hours, in 10^9 bytes, by all processes
            together, to spare the drive; 0: no limit.
        kv_read_gb_s, kv_write_gb_s: most that is read and written per second, in 10^9 bytes; 0: no
            limit. Requests that wait for stored KV wait longer, others do not.
        kv_max_age_s: seconds after which KV that was computed is not reused any more, in memory or
            on disk; 0: never.
        kv_tenant_share: part of the KV pages, in memory and on disk, that each tenant is sure of:
            while one has more, only he loses pages to others. 1: those unused longest go,
            whoever's they are.
        page_order_seed: None hands out fresh pages in ascending order; a number shuffles that
            order. For debugging: no result may depend on it.
        max_model_len: longest prompt + output; None takes the model's own limit, or the pool's
            where that is smaller.
        max_batch_tokens: most tokens computed in one step; enough for all other requests to decode
            beside a page of somebody's prompt.
        max_num_seqs: most requests running at once.
        max_itl_ms: most milliseconds, by prediction, of a step in which any request decodes: prompt
            chunks are made as large as that allows. None: 100, or twice what one decode takes when
            nothing else runs, if that is more.
        schedule_policy: "fcfs" serves in order of arrival and refuses requests with a priority;
            "priority" serves lower `Request.priority` first, in order of arrival among equals.
        max_waiting: most requests waiting; more are refused.
        max_waiting_tokens: most prompt tokens waiting, unless one prompt alone is longer; more are
            refused. None: no limit.
        enable_prefix_cache: reuse KV pages of earlier requests with the same prefix.
        cpu_graph: replay decode steps as recorded graphs (backend "kt" only).
        debug_numerics: look at every op's output; a request whose values are not finite ends with
            an error that names op, layer and step. Slow: no graphs.
        pack_cache: a directory that keeps packed experts between starts (backend "kt" only): what
            is kept belongs to the checkpoint's content and these settings. None keeps none.
        model_identity: what tells two checkpoints apart where something of them is kept on disk:
            "sampled" is each weight file's name, size, time of change, header and 16 samples of
            1 MiB; "full" its name and every byte, which takes reading them all but lets a copy
            with new times count as the same.
        num_threads: compute threads; None takes all physical cores allowed to this process.
    """

    weight_format: WeightFormat = "native"
    group_size: int = 32
    device: str = "auto"
    backend: Backend = "kt"
    kv_dtype: KVDtype = "auto"
    kv_page_size: int = 16
    num_pages: int | None = None
    kv_cpu_memory_gb: float = 1.0
    kv_disk_path: str | None = None
    kv_disk_gb: float = 20.0
    kv_io: KVIo = "auto"
    kv_write_policy: KVWritePolicy = "through"
    kv_daily_write_gb: float = 0.0
    kv_read_gb_s: float = 0.0
    kv_write_gb_s: float = 0.0
    kv_max_age_s: float = 0.0
    kv_tenant_share: float = 1.0
    page_order_seed: int | None = None
    max_model_len: int | None = None
    max_batch_tokens: int = 512
    max_num_seqs: int = 32
    max_itl_ms: float | None = None
    schedule_policy: SchedulePolicy = "fcfs"
    max_waiting: int = 1024
    max_waiting_tokens: int | None = None
    enable_prefix_cache: bool = True
    cpu_graph: bool = True
    debug_numerics: bool = False
    pack_cache: str | None = None
    model_identity: ModelIdentity = "sampled"
    num_threads: int | None = None

    def __post_init__(self) -> None:
        def check(ok: bool, rule: str, got: object) -> None:
            if not ok:
                raise ValueError(f"[config] {rule}; got {got!r}")

        def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
            check(value in allowed, f"{name} must be one of {', '.join(allowed)}", value)

        one_of("weight_format", self.weight_format, get_args(WeightFormat))
        one_of("kv_dtype", self.kv_dtype, get_args(KVDtype))
        one_of("backend", self.backend, get_args(Backend))
        one_of("device", self.device, ("auto", "cpu"))
        one_of("kv_io", self.kv_io, get_args(KVIo))
        one_of("kv_write_policy", self.kv_write_policy, get_args(KVWritePolicy))
        one_of("model_identity", self.model_identity, get_args(ModelIdentity))
        one_of("schedule_policy", self.schedule_policy, get_args(SchedulePolicy))
        check(self.group_size in (32, 64, 128), "group_size must be 32, 64 or 128", self.group_size)
        for name in ("kv_page_size", "max_batch_tokens", "max_num_seqs", "max_waiting"):
            value = getattr(self, name)
            check(
                is_whole(value) and value >= 1,
                f"{name} must be a whole number of at least 1",
                value,
            )
        for name in ("num_pages", "max_model_len", "num_threads", "max_waiting_tokens"):
            value = getattr(self, name)
            ok = value is None or (is_whole(value) and value >= 1)
            check(ok, f"{name} must be a whole number of at least 1", value)
        for name in ("kv_cpu_memory_gb", "kv_disk_gb"):
            value = getattr(self, name)
            check(0 < value < float("inf"), f"{name} must be positive and finite", value)
        for name in ("kv_daily_write_gb", "kv_read_gb_s", "kv_write_gb_s", "kv_max_age_s"):
            value = getattr(self, name)
            check(0 <= value < float("inf"), f"{name} must be at least 0 and finite", value)
        share_ok = 0 < self.kv_tenant_share <= 1
        rule = "kv_tenant_share must be greater than 0, at most 1"
        check(share_ok, rule, self.kv_tenant_share)
        check(self.kv_disk_path != "", "kv_disk_path must name a directory", self.kv_disk_path)
        itl_ok = self.max_itl_ms is None or 0 < self.max_itl_ms < float("inf")
        check(itl_ok, "max_itl_ms must be positive", self.max_itl_ms)
        least = self.max_num_seqs - 1 + self.kv_page_size
        check(
            self.max_batch_tokens >= least,
            f"max_batch_tokens must be at least max_num_seqs - 1 + kv_page_size ({least})",
            self.max_batch_tokens,
        )

    @property
    def resolved_kv_dtype(self) -> Literal["float32", "bf16"]:
        """kv_dtype with "auto" decided."""
        if self.kv_dtype == "auto":
            return "float32" if self.weight_format == "float32" else "bf16"
        return self.kv_dtype
