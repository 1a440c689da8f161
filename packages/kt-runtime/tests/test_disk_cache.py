# SPDX-License-Identifier: Apache-2.0
"""KV pages on a real disk under the whole engine: what a restart keeps, and what nothing brings
back."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kt_runtime.config import EngineConfig
from kt_runtime.core import Request, SamplingParams, TokenEvent
from kt_runtime.engine import Engine
from kt_runtime.llm import LLM

from .fake_model import fake_engine, greedy_continuation, greedy_request, tokens_of
from .tiny_models import tiny_checkpoint

PROMPT = tuple(range(20, 43))  # five full pages of 4, and three tokens
# All but the last token: the page that holds these three and the answer's first is stored, too.
FOUND = 22


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def engine_on(root: Path, **settings: Any) -> Engine:
    """Its pages are NaN before they are written, which the model would notice."""
    engine = fake_engine(kv_disk_path=str(root), kv_disk_gb=0.01, **settings)
    space: Any = engine._parts.pool._space_of(None)
    num_pages = engine.stats().num_pages
    with space.reserve(space.chain(()), 0, num_pages) as writer:
        for layer in writer.view().layer_buffers:
            layer[:] = 0xFF
    return engine


def run(engine: Engine, *requests: Request) -> list[TokenEvent]:
    """Steps as the engine's thread does, which sleeps while it only waits for loads."""
    events = []
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.wait_for_work()
        events += engine.step()
    return events


def cached(root: Path, prompt=PROMPT, tenant: str | None = None, **settings: Any) -> int:
    """How much of the prompt an engine that was just started finds; what it says is right."""
    with engine_on(root, **settings) as engine:
        events = run(engine, greedy_request("r", prompt, 8, tenant=tenant))
    assert tokens_of(events, "r") == greedy_continuation(prompt, 8)
    return events[-1].num_cached_tokens


def test_a_restart_keeps_the_hits_and_answers_the_same(root: Path) -> None:
    assert cached(root) == 0
    with engine_on(root) as engine:
        events = run(engine, greedy_request("r", PROMPT, 8))
        assert engine.stats().prefill_tokens == 1
    assert tokens_of(events, "r") == greedy_continuation(PROMPT, 8)
    assert events[-1].num_cached_tokens == FOUND
    # What was said belongs to the next turn's prefix.
    turn = (*PROMPT, *greedy_continuation(PROMPT, 8), 5, 6)
    assert cached(root, turn) == 28


def test_pages_move_the_way_that_was_asked_for(root: Path) -> None:
    with engine_on(root, kv_io="threads") as engine:
        assert engine._parts.store._store.stats().disk.io == "threads"


def test_settings_of_the_disk_reach_the_store(root: Path) -> None:
    with engine_on(
        root,
        kv_write_policy="back",
        kv_daily_write_gb=1.0,
        kv_read_gb_s=2.0,
        kv_write_gb_s=1e-12,
        kv_max_age_s=60.0,
    ) as engine:
        config = engine._parts.store._store._config
    assert (config.write_policy, config.daily_write_bytes) == ("back", 10**9)
    assert (config.read_bytes_per_s, config.write_bytes_per_s) == (2 * 10**9, 1)
    assert config.max_age_s == 60


def test_many_requests_after_a_restart_load_the_same_pages(root: Path) -> None:
    cached(root)
    prompts = {f"{i}": (*PROMPT, i) for i in range(6)}
    with engine_on(root, num_pages=16) as engine:
        events = run(engine, *(greedy_request(i, p, 4) for i, p in prompts.items()))
        assert engine._parts.store._store.flush().result(60)  # what is written is held, too
        assert engine.stats().pages_used == 0
    for request_id, prompt in prompts.items():
        assert tokens_of(events, request_id) == greedy_continuation(prompt, 4)


def test_what_memory_does_not_hold_comes_back_from_disk(root: Path) -> None:
    """Conversations that are together larger than memory, in turns."""
    prompts = {f"{i}": [i + 1] * 20 for i in range(6)}
    reused = []
    with engine_on(root, num_pages=10) as engine:
        for turn in range(3):
            for i, prompt in prompts.items():
                events = run(engine, greedy_request(f"{i}.{turn}", prompt, 1))
                assert tokens_of(events, f"{i}.{turn}") == greedy_continuation(prompt, 1)
                reused.append(events[-1].num_cached_tokens)
                assert engine._parts.store._store.flush().result(60)
    assert reused[:6] == [0] * 6
    assert reused[6:] == [19] * 12


@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 64},
        {"kv_dtype": "bf16"},
        {"kv_page_size": 2, "num_pages": 128},
        {"backend": "torch"},
        {"tenant": "somebody else"},
        {"enable_prefix_cache": False},
    ],
)
def test_other_settings_and_tenants_find_nothing(root: Path, settings: dict[str, Any]) -> None:
    assert cached(root) == 0
    assert cached(root, **settings) == 0
    assert cached(root) == FOUND


def test_a_tenant_finds_its_own(root: Path) -> None:
    assert cached(root, tenant="a") == 0
    assert cached(root, tenant="b") == 0
    assert cached(root, tenant="a") == FOUND


@pytest.mark.parametrize(("share", "expected"), [(0.5, FOUND), (1.0, 0)])
def test_a_tenant_keeps_its_share_of_the_pages(share: float, expected: int) -> None:
    with fake_engine(num_pages=32, kv_tenant_share=share) as engine:
        run(engine, greedy_request("a", PROMPT, 8, tenant="a"))
        for i in range(8):
            other = tuple((7 * i + j) % 60 for j in range(40))
            run(engine, greedy_request(f"b{i}", other, 8, tenant="b"))
        events = run(engine, greedy_request("again", PROMPT, 8, tenant="a"))
    assert events[-1].num_cached_tokens == expected


def test_damaged_pages_are_computed_again(root: Path) -> None:
    cached(root)
    for file in root.rglob("*.kvs"):
        content = bytearray(file.read_bytes())
        # Everywhere but in the first pages of a segment.
        for at in range(2 * 4096, len(content), 64):
            content[at] ^= 1
        file.write_bytes(content)
    assert cached(root) == 8


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_cannot_be_written_costs_hits_and_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, "broken")

    with engine_on(root) as engine:
        monkeypatch.setattr("kt_kvcache.disk.files.OsFiles.pwrite", fail)
        for i in range(3):
            events = run(engine, greedy_request(f"{i}", PROMPT, 8))
            assert tokens_of(events, f"{i}") == greedy_continuation(PROMPT, 8)
        assert events[-1].num_cached_tokens == FOUND  # in memory
    monkeypatch.undo()
    assert cached(root) == 0


def test_an_unsafe_directory_is_refused(root: Path) -> None:
    root.mkdir(mode=0o777)
    root.chmod(0o777)
    with pytest.raises(ValueError, match="root must belong to its user"):
        engine_on(root)
    with pytest.raises(ValueError, match="root must belong to its user"):  # and not at the end
        Engine.from_pretrained(root / "no-model", EngineConfig(kv_disk_path=str(root)))


def test_a_context_needs_all_pages_and_the_disk_is_written_meanwhile(root: Path) -> None:
    """What waits to be written is held in memory: a sequence that needs those pages waits for
    them."""
    with engine_on(root, num_pages=8) as engine:
        events = []
        for i in range(4):
            prompt = [i + 30] * 20
            events = run(engine, greedy_request(f"{i}", prompt, 12))
            assert tokens_of(events, f"{i}") == greedy_continuation(prompt, 12)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny real model's directory to change."""
    return Path(shutil.copytree(tiny_checkpoint("qwen3_moe")[1], tmp_path / "model"))


def ask(model: Path, root: Path | None, **settings: Any) -> tuple[list[int], int]:
    """What a real model says on real kernels, and how much of the prompt was found."""
    path = None if root is None else str(root)
    config = EngineConfig(
        num_pages=32, num_threads=2, kv_page_size=4, kv_disk_path=path, kv_disk_gb=0.05, **settings
    )
    with Engine.from_pretrained(model, config) as engine:
        events = run(engine, greedy_request("r", PROMPT, 8))
    return tokens_of(events, "r"), events[-1].num_cached_tokens


def test_a_real_model_says_the_same_from_disk(model: Path, root: Path) -> None:
    want, _ = ask(model, None)
    assert ask(model, root) == (want, 0)
    assert ask(model, root) == (want, FOUND)
    assert ask(model, root, enable_prefix_cache=False) == (want, 0)


def test_offline_answers_load_too(model: Path, root: Path) -> None:
    found = []
    for _ in range(2):
        with LLM(
            model, num_pages=32, kv_page_size=4, kv_disk_path=str(root), kv_disk_gb=0.05
        ) as llm:
            (answer,) = llm.generate([list(PROMPT)], SamplingParams(temperature=0, max_tokens=4))
            found.append(answer.num_cached_tokens)
            llm.logits(PROMPT)
    assert found == [0, FOUND]


@pytest.mark.parametrize(
    "settings", [{"weight_format": "int8"}, {"kv_dtype": "float32"}, {"weight_format": "float32"}]
)
def test_another_quantisation_finds_nothing(model: Path, root: Path, settings) -> None:
    ask(model, root)
    want, _ = ask(model, None, **settings)
    assert ask(model, root, **settings) == (want, 0)


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_model_finds_nothing(model: Path, root: Path, changed: str) -> None:
    ask(model, root)
    file = model / changed
    if changed == "config.json":
        file.write_text(file.read_text() + "\n")
    elif changed == "tokenizer.json":
        file.write_text("{}")
    else:
        os.utime(file, ns=(1, 1))
    assert ask(model, root)[1] == 0
