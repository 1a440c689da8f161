# SPDX-License-Identifier: Apache-2.0
"""debug_numerics names the op, the layer and the step at which a value first was not finite."""

from __future__ import annotations

import numpy as np
import pytest

from kt_runtime.config import EngineConfig
from kt_runtime.engine import Engine

from .fake_model import drain, greedy_request, last_of, tokens_of
from .tiny_models import random_ids, tiny_checkpoint

NAME = "qwen3_moe"


def engine_of(**settings) -> Engine:
    config = {"weight_format": "float32", "num_pages": 40, "num_threads": 2} | settings
    return Engine.from_pretrained(tiny_checkpoint(NAME)[1], EngineConfig(**config))


def said(engine: Engine, prompts) -> dict[str, list[int]]:
    for request_id, prompt in prompts.items():
        engine.add(greedy_request(request_id, prompt, 5, chunk_size=4))
    events = drain(engine)
    return {request_id: tokens_of(events, request_id) for request_id in prompts}


PROMPTS = {f"{n}": random_ids(n, 512, n) for n in (1, 6, 11)}


@pytest.mark.parametrize("backend", ["kt", "torch"])
def test_looking_changes_nothing(backend):
    watched, plain = engine_of(debug_numerics=True, backend=backend), engine_of(backend=backend)
    assert said(watched, PROMPTS) == said(plain, PROMPTS)
    assert watched.stats().graph_steps == 0


@pytest.mark.parametrize("debug", [True, False])
def test_a_poisoned_layer_is_named_and_hits_its_reader_only(debug):
    """One KV page of layer 1 is poisoned between two steps: only its reader breaks, there."""
    engine = engine_of(debug_numerics=debug, enable_prefix_cache=False)
    engine.add(greedy_request("bad", PROMPTS["6"], 8))
    engine.add(greedy_request("good", PROMPTS["11"], 8))
    engine.step()
    page = next(iter(engine._scheduler.running)).page_table.page_ids[0]
    engine._parts.runner._kv[1].v[page, 2] = np.nan
    events = drain(engine)
    bad = last_of(events, "bad")
    assert bad.finish_reason == "error"
    if debug:
        assert "the first value that is not finite came from attention in layer 1, step 2" in (
            bad.error
        )
    else:
        assert "logits must be finite" in bad.error
    assert last_of(events, "good").finish_reason == "length"


@pytest.mark.parametrize(
    ("tensor", "where"),
    [
        ("embed_tokens", "embedding outside the layers"),
        ("norm", "rms_norm outside the layers"),
        ("lm_head", "linear outside the layers"),
    ],
)
def test_what_is_outside_the_layers_is_named_so(tensor, where):
    engine = engine_of(debug_numerics=True, backend="torch")
    weight = getattr(engine._parts.runner._model, tensor)
    getattr(weight, "weight", weight).fill_(np.inf)
    engine.add(greedy_request("a", PROMPTS["6"], 8, chunk_size=2))
    (event,) = drain(engine)
    assert f"came from {where}, step " in event.error
