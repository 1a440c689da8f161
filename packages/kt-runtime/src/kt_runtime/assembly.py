# SPDX-License-Identifier: Apache-2.0
"""Wires checkpoint, Ops, KV pages and graphs into what an Engine drives. Decides nothing at run
time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from kt_runtime.cache import kv_tensors
from kt_runtime.cache.page_pool import PagePool
from kt_runtime.cache.store import KVOrigin, ModelStore, check_root
from kt_runtime.checkpoint.fingerprint import Fingerprint
from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig
from kt_runtime.exec.backend import Backend, open_backend
from kt_runtime.exec.cpu_graph import CpuGraphRunner
from kt_runtime.exec.numerics import NumericsCheck
from kt_runtime.exec.runner import Runner
from kt_runtime.loading import PackedModel, Progress, pack_model
from kt_runtime.protocols import CausalLM, ModelShape


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an Engine drives.

    Attributes:
        model_config: config.json.
        shape: what the engine knows of the model.
        eos_token_ids: ids that end a sequence.
        max_model_len: most tokens of prompt and output; they fit the page pool.
        runner: computes steps.
        pool: hands out pages.
        store: where the pages' prefixes are; closed with the engine.
        weight_formats: what each kind of matrix was packed to.
        kernel_target: name of the instruction set in use.
        op_counts: how often each kernel op ran.
    """

    model_config: ModelConfig
    shape: ModelShape
    eos_token_ids: frozenset[int]
    max_model_len: int
    runner: Runner
    pool: PagePool
    store: ModelStore
    weight_formats: Mapping[str, str]
    kernel_target: Callable[[], str]
    op_counts: Callable[[], Mapping[str, int]]


def assemble(
    model: str | Path | ModelFiles | Future[PackedModel],
    config: EngineConfig,
    progress: Progress | None,
) -> EngineParts:
    """Load a model with its backend and pages; see `Engine.from_pretrained`."""
    check_root(config)
    packed = model.result() if isinstance(model, Future) else pack_model(model, config, progress)
    return build_parts(
        packed.model,
        open_backend(config, packed.pool),
        config,
        model_config=packed.checkpoint.config,
        eos_token_ids=packed.checkpoint.eos_token_ids,
        fingerprint=packed.fingerprint,
    )


def build_parts(
    model: CausalLM,
    backend: Backend,
    config: EngineConfig,
    *,
    model_config: ModelConfig,
    eos_token_ids: tuple[int, ...],
    fingerprint: Fingerprint,
) -> EngineParts:
    """Give a loaded model its pages, graphs and runner."""
    shape = model.shape
    num_pages = kv_tensors.num_pages(shape, config)
    max_model_len = _max_model_len(shape, config, num_pages)
    kv = kv_tensors.allocate(shape, config)
    computed_by = f"{backend.version}/{backend.kernel_target()}"
    store = ModelStore(config, kv, KVOrigin(fingerprint, model.weight_formats, computed_by))
    graphs = None
    if backend.graphs_of is not None and config.cpu_graph and not config.debug_numerics:
        graphs = CpuGraphRunner(
            model,
            kv,
            backend.graphs_of,
            max_rows=config.max_num_seqs,
            max_pages=-(-max_model_len // config.kv_page_size),
        )
    check = NumericsCheck(backend.ops) if config.debug_numerics else None
    return EngineParts(
        model_config=model_config,
        shape=shape,
        eos_token_ids=frozenset(eos_token_ids),
        max_model_len=max_model_len,
        runner=Runner(model, backend.ops, kv, graphs, check),
        pool=PagePool(
            store.space_of,
            config.kv_page_size,
            store.out_of_pages,
            reuse=config.enable_prefix_cache,
        ),
        store=store,
        weight_formats=model.weight_formats,
        kernel_target=backend.kernel_target,
        op_counts=backend.op_counts,
    )


def _max_model_len(shape: ModelShape, config: EngineConfig, num_pages: int) -> int:
    limits = {
        "the model's context": shape.max_position_embeddings,
        "the page pool": num_pages * config.kv_page_size,
    }
    if config.max_model_len is None:
        return min(limits.values())
    for what, limit in limits.items():
        if config.max_model_len > limit:
            raise ValueError(
                f"[config] max_model_len must fit {what} of {limit} tokens; "
                f"got {config.max_model_len}"
            )
    return config.max_model_len
