# SPDX-License-Identifier: Apache-2.0
"""The whole way of a request on tiny real checkpoints: pages, graphs and kernels against
transformers."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from kt_kernel.testing import negated
from kt_runtime.config import EngineConfig
from kt_runtime.core import Request
from kt_runtime.engine import Engine

from .fake_model import drain, greedy_request, last_of, tokens_of
from .tiny_models import expected_logits, random_ids, tiny_checkpoint

NAMES = ["mixtral-ragged-tied", "qwen3_moe", "glm4_moe-ragged-groups-biases"]
NUM_LAYERS = 3
# transformers sums in another order; observed differences are below 1e-5.
TOLERANCE = 1e-4


def engine_of(name: str, **settings) -> Engine:
    settings = {"weight_format": "float32", "num_pages": 40, "num_threads": 2} | settings
    return Engine.from_pretrained(tiny_checkpoint(name)[1], EngineConfig(**settings))


def logits_of(engine: Engine, ids, chunk_size: int | None = None) -> np.ndarray:
    engine.add(Request("logits", tuple(ids), return_logits=True, chunk_size=chunk_size))
    assert drain(engine)[-1].finish_reason == "length"
    return engine.take_logits("logits")


def ids_of(name: str, count: int = 60, seed: int = 1) -> list[int]:
    return random_ids(count, tiny_checkpoint(name)[0].config.vocab_size, seed)


@cache
def one_shot(name: str, weight_format: str = "float32") -> np.ndarray:
    return logits_of(engine_of(name, weight_format=weight_format), ids_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    expected = expected_logits(tiny_checkpoint(name)[0], ids_of(name)).numpy()
    np.testing.assert_allclose(one_shot(name), expected, atol=TOLERANCE, rtol=0)
    through_torch = logits_of(engine_of(name, backend="torch"), ids_of(name), chunk_size=17)
    np.testing.assert_allclose(through_torch, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kv_page_size": 1, "num_pages": 80},
        {"page_order_seed": 5},
        {"num_threads": 1},
        {"cpu_graph": False},
    ],
    ids=str,
)
def test_chunks_pages_threads_and_graphs_change_no_bit(name, settings):
    engine = engine_of(name, **settings)
    for chunk_size in (None, 7, 1):
        logits = logits_of(engine, ids_of(name), chunk_size)
        np.testing.assert_array_equal(logits, one_shot(name))
    decode_steps = len(ids_of(name)) if settings.get("cpu_graph", True) else 0
    assert engine.stats().graph_steps == decode_steps


@pytest.mark.parametrize("weight_format", ["bf16", "int8", "int4"])
def test_chunks_change_no_bit_in_any_format(weight_format):
    engine = engine_of("qwen3_moe", weight_format=weight_format)
    for chunk_size in (11, 1):
        logits = logits_of(engine, ids_of("qwen3_moe"), chunk_size)
        np.testing.assert_array_equal(logits, one_shot("qwen3_moe", weight_format))
    assert engine.stats().kv_dtype == "bf16"


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_that_of_transformers(name):
    model = tiny_checkpoint(name)[0]
    engine = engine_of(name)
    prompts = {f"{n}": ids_of(name, n, seed=n) for n in (1, 5, 18, 33)}
    for request_id, prompt in prompts.items():
        # Small chunks leave steps in which no row is sampled.
        engine.add(greedy_request(request_id, prompt, 12, chunk_size=4))
    events = drain(engine)
    for request_id, prompt in prompts.items():
        said = tokens_of(events, request_id)
        assert len(said) == 12
        rows = expected_logits(model, prompt + said).numpy()[len(prompt) - 1 : -1]
        for token, row in zip(said, rows, strict=True):
            second, best = np.sort(row)[-2:]
            assert token == row.argmax() or best - second < 2 * TOLERANCE


def test_batch_mates_change_no_token_and_share_steps():
    prompts = {f"{i}": ids_of("qwen3_moe", 9 + i, seed=i) for i in range(4)}
    together = engine_of("qwen3_moe")
    for request_id, prompt in prompts.items():
        together.add(greedy_request(request_id, prompt, 20))
    events = drain(together)
    assert together.stats().steps == 20  # one prefill step gives each its first token
    assert together.stats().generated_tokens == 80
    alone = engine_of("qwen3_moe")
    for request_id, prompt in prompts.items():
        alone.add(greedy_request(request_id, prompt, 20))
        assert tokens_of(drain(alone), request_id) == tokens_of(events, request_id)


@pytest.mark.parametrize("enable_prefix_cache", [True, False])
@pytest.mark.parametrize("weight_format", ["float32", "int4"])
def test_a_preempted_request_says_the_same_to_the_bit(weight_format, enable_prefix_cache):
    sampling = {"temperature": 1.5, "seed": 3}
    prompts = {f"{i}": ids_of("qwen3_moe", 20 + i, seed=i) for i in range(3)}
    # Room for two and a half of them; 45 tokens take 12 pages.
    tight = engine_of(
        "qwen3_moe",
        weight_format=weight_format,
        kv_page_size=4,
        num_pages=30,
        enable_prefix_cache=enable_prefix_cache,
    )
    for request_id, prompt in prompts.items():
        tight.add(greedy_request(request_id, prompt, 25, sampling=sampling))
    events = drain(tight)
    assert tight.stats().preemptions > 0
    roomy = engine_of("qwen3_moe", weight_format=weight_format)
    for request_id, prompt in prompts.items():
        roomy.add(greedy_request(request_id, prompt, 25, sampling=sampling))
    expected = drain(roomy)
    assert roomy.stats().preemptions == 0
    for request_id in prompts:
        assert tokens_of(events, request_id) == tokens_of(expected, request_id)
        assert len(tokens_of(events, request_id)) == 25


def test_an_error_in_a_kernel_call_ends_its_requests_and_the_threads_go_on(monkeypatch):
    engine = engine_of("qwen3_moe")
    prompt = ids_of("qwen3_moe", 9)
    engine.add(greedy_request("before", prompt, 6))
    expected = tokens_of(drain(engine), "before")
    with monkeypatch.context() as patch:
        # Page ids outside the pool: the kernel's own check of its arguments.
        patch.setattr("kt_runtime.cache.page_pool.SequencePages.page_ids", [1 << 20] * 8)
        engine.add(greedy_request("broken", prompt, 6))
        (event,) = drain(engine)
    assert event.finish_reason == "error"
    assert re.search(r"ValueError: .*got", event.error)
    engine.add(greedy_request("after", prompt, 6))
    assert tokens_of(drain(engine), "after") == expected
    assert engine.stats().pages_used == 0


def test_a_reused_prefix_gives_the_same_text():
    prompt = ids_of("glm4_moe-ragged-groups-biases", 50)
    engine = engine_of("glm4_moe-ragged-groups-biases")
    for request_id, cached in (("cold", 0), ("warm", 48)):
        engine.add(greedy_request(request_id, prompt, 12))
        events = drain(engine)
        assert last_of(events, request_id).num_cached_tokens == cached
        said = tokens_of(events, request_id)
    fresh = engine_of("glm4_moe-ragged-groups-biases", enable_prefix_cache=False)
    fresh.add(greedy_request("fresh", prompt, 12))
    assert tokens_of(drain(fresh), "fresh") == said


def test_logits_take_one_forward_and_each_kernel_op_as_often_as_the_model_has_it():
    engine = engine_of("mixtral-ragged-tied")
    before = engine.stats()
    logits_of(engine, ids_of("mixtral-ragged-tied"), chunk_size=20)
    logits_of(engine, ids_of("mixtral-ragged-tied")[:10], chunk_size=1)
    after = engine.stats()
    steps = after.steps - before.steps
    assert (steps, after.graph_steps) == (3 + 10, 10)
    ran = {op: n - before.op_counts.get(op, 0) for op, n in after.op_counts.items()}
    assert ran["embedding"] == steps
    assert ran["attention"] == ran["rope_write_kv"] == ran["moe"] == steps * NUM_LAYERS
    assert ran["route"] == steps * NUM_LAYERS
    assert ran["rms_norm"] == steps * (2 * NUM_LAYERS + 1)


@pytest.mark.parametrize(
    "kernel", ["attention", "gemm_float32", "rms_norm", "combine", "embedding"]
)
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_negating_one_kernel_changes_the_logits(kernel, chunk_size):
    ids, truth = ids_of("qwen3_moe"), one_shot("qwen3_moe")
    engine = engine_of("qwen3_moe")
    with negated(kernel):
        assert not np.allclose(logits_of(engine, ids, chunk_size), truth)
    np.testing.assert_array_equal(logits_of(engine, ids, chunk_size), truth)
