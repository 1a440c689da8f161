# SPDX-License-Identifier: Apache-2.0
"""`kt serve`: load a model, listen, and stop cleanly when told to. The HTTP API is app.py."""

from __future__ import annotations

import logging
import os
import socket
from typing import Annotated

import typer

from kt_runtime.config import (
    EngineConfig,
    KVIo,
    KVWritePolicy,
    ModelIdentity,
    SchedulePolicy,
)
from kt_runtime.core import EngineStats
from kt_server import __version__
from kt_server.cli.config_file import ConfigOption
from kt_server.cli.loading import (
    KVDiskOption,
    KVDiskPathOption,
    KVMemoryOption,
    LoadedModel,
    MaxModelLenOption,
    ModelArgument,
    NumThreadsOption,
    PackCacheOption,
    WeightFormatOption,
    finish_loading,
    open_model,
)

LOG_LEVELS = ("debug", "info", "warning", "error")


def serve(
    model: ModelArgument,
    config: ConfigOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="The model's name in the API (default: MODEL).")
    ] = None,
    weight_format: WeightFormatOption = "native",
    max_model_len: MaxModelLenOption = None,
    kv_cpu_memory_gb: KVMemoryOption = 1.0,
    kv_page_size: Annotated[int, typer.Option(help="Tokens per KV page.")] = 16,
    kv_disk_path: KVDiskPathOption = None,
    kv_disk_gb: KVDiskOption = 20.0,
    kv_io: Annotated[
        KVIo, typer.Option(help="How stored KV is read and written; auto: io_uring if allowed.")
    ] = "auto",
    kv_write_policy: Annotated[
        KVWritePolicy,
        typer.Option(
            help="Write KV to disk at once (through), when a second request had it (selective), or "
            "when memory needs its place (back)."
        ),
    ] = "through",
    kv_daily_write_gb: Annotated[
        float, typer.Option(help="Most KV written to disk in 24 hours, in GB (0: no limit).")
    ] = 0.0,
    kv_read_gb_s: Annotated[
        float, typer.Option(help="Most KV read from disk per second, in GB (0: no limit).")
    ] = 0.0,
    kv_write_gb_s: Annotated[
        float, typer.Option(help="Most KV written to disk per second, in GB (0: no limit).")
    ] = 0.0,
    kv_max_age_s: Annotated[
        float,
        typer.Option(help="Seconds after which stored KV is not reused any more (0: never)."),
    ] = 0.0,
    kv_tenant_share: Annotated[
        float,
        typer.Option(
            help="Part of the stored KV that no other tenant can push out (API keys are tenants; "
            "1: what is unused longest goes)."
        ),
    ] = 1.0,
    model_identity: Annotated[
        ModelIdentity,
        typer.Option(help="Tell models apart by samples of their files, or by every byte."),
    ] = "sampled",
    max_batch_tokens: Annotated[int, typer.Option(help="Most tokens computed in one step.")] = 512,
    max_num_seqs: Annotated[int, typer.Option(help="Most requests running at once.")] = 32,
    max_itl_ms: Annotated[
        float | None,
        typer.Option(
            help="Most milliseconds between two tokens of an answer while others' prompts are "
            "computed; prompts then come in smaller chunks (default: 100, or twice an idle decode)."
        ),
    ] = None,
    schedule_policy: Annotated[
        SchedulePolicy,
        typer.Option(help="Serve in order of arrival, or lower priority fields first."),
    ] = "fcfs",
    max_waiting: Annotated[int, typer.Option(help="Most requests waiting; more get 503.")] = 1024,
    max_waiting_tokens: Annotated[
        int | None, typer.Option(help="Most prompt tokens waiting; more get 503.")
    ] = None,
    num_threads: NumThreadsOption = None,
    pack_cache: PackCacheOption = None,
    debug_numerics: Annotated[
        bool, typer.Option("--debug-numerics", help="Name the layer where NaN appears; slow.")
    ] = False,
) -> None:
    """Serve MODEL through an OpenAI-compatible API."""
    logging.basicConfig(level=log_level(), format="%(asctime)s %(levelname)s %(message)s")
    del config  # its options are among the others
    engine_config = EngineConfig(
        weight_format=weight_format,
        max_model_len=max_model_len,
        kv_cpu_memory_gb=kv_cpu_memory_gb,
        num_threads=num_threads,
        pack_cache=pack_cache,
        kv_page_size=kv_page_size,
        kv_disk_path=kv_disk_path,
        kv_disk_gb=kv_disk_gb,
        kv_io=kv_io,
        kv_write_policy=kv_write_policy,
        kv_daily_write_gb=kv_daily_write_gb,
        kv_read_gb_s=kv_read_gb_s,
        kv_write_gb_s=kv_write_gb_s,
        kv_max_age_s=kv_max_age_s,
        kv_tenant_share=kv_tenant_share,
        model_identity=model_identity,
        max_batch_tokens=max_batch_tokens,
        max_num_seqs=max_num_seqs,
        max_itl_ms=max_itl_ms,
        schedule_policy=schedule_policy,
        max_waiting=max_waiting,
        max_waiting_tokens=max_waiting_tokens,
        debug_numerics=debug_numerics,
    )
    check_address(host, port)
    opened = open_model(model, engine_config)
    # While that loads: aiohttp and all that uses it.
    import asyncio

    from kt_server.app import create_app
    from kt_server.run_server import run_server
    from kt_server.served import ServerConfig

    loaded = finish_loading(opened)
    name = served_model_name or model
    server_config = ServerConfig(sampling_defaults=loaded.sampling_defaults)
    app = create_app(loaded.engine, loaded.tokenizer, loaded.chat_template, name, server_config)
    try:
        asyncio.run(run_server(app, host, port, lambda url: _announce(name, loaded, url)))
    finally:
        loaded.engine.close()


def check_address(host: str, port: int) -> None:
    """Raises OSError if `host` and `port` cannot be listened on: before a long load, not after."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind(address)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {host} port {port}") from None


def log_level() -> str:
    """The level named by the environment variable KT_LOG, "info" where it is unset.

    Raises:
        ValueError: KT_LOG names no level.
    """
    name = os.getenv("KT_LOG") or "info"
    if name.lower() not in LOG_LEVELS:
        raise ValueError(f"[serve] KT_LOG must be one of {', '.join(LOG_LEVELS)}; got {name!r}")
    return name.upper()


def weight_format_line(stats: EngineStats) -> str:
    """What was asked for, and what that came to: "int4 (experts int4, linear int8, …)"."""
    packed = ", ".join(f"{kind} {name}" for kind, name in sorted(stats.weight_formats.items()))
    return f"{stats.weight_format} ({packed})"


def _disk_line(config: EngineConfig) -> str:
    if config.kv_disk_path is None:
        return "none"
    return f"{config.kv_disk_path}, at most {config.kv_disk_gb:g} GB"


def _announce(name: str, loaded: LoadedModel, url: str) -> None:
    """What runs, then the line that scripts wait for: `listening on URL`."""
    engine, stats = loaded.engine, loaded.engine.stats()
    pages = f"{stats.num_pages} pages of {engine.config.kv_page_size} tokens, {stats.kv_dtype}"
    template = "yes" if loaded.chat_template is not None else "none: completions only"
    rows = {
        "kt": __version__,
        "model": f"{name} ({loaded.path})",
        "backend": stats.backend,
        "kernel target": stats.kernel_target,
        "weight format": weight_format_line(stats),
        "context length": f"{engine.max_model_len} tokens",
        "KV cache": pages,
        "KV on disk": _disk_line(engine.config),
        "step limit": f"{stats.max_itl_s * 1e3:.0f} ms while anything decodes",
        "chat template": template,
    }
    for label, value in rows.items():
        print(f"{label:15s} {value}")
    print(f"listening on {url}", flush=True)
