# SPDX-License-Identifier: Apache-2.0
"""The page pool on the real prefix store: what is reused, what comes back, what may not be
shared."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_runtime.cache import kv_tensors
from kt_runtime.cache.page_pool import PagePool
from kt_runtime.cache.store import KVOrigin, ModelStore
from kt_runtime.checkpoint.fingerprint import Fingerprint
from kt_runtime.checkpoint.model_files import ModelFiles
from kt_runtime.config import EngineConfig
from kt_runtime.protocols import ModelShape

SHAPE = ModelShape(
    vocab_size=100, num_layers=2, num_kv_heads=1, head_dim=4, max_position_embeddings=64
)
ORIGIN = KVOrigin(Fingerprint(ModelFiles.open(Path(__file__).parent / "fake_checkpoint")), {}, "")


def pool_of(num_pages: int, origin: KVOrigin = ORIGIN, **settings) -> tuple[PagePool, ModelStore]:
    config = EngineConfig(**{"kv_page_size": 4, "num_pages": num_pages} | settings)
    store = ModelStore(config, kv_tensors.allocate(SHAPE, config), origin)
    pool = PagePool(
        store.space_of, config.kv_page_size, store.out_of_pages, reuse=config.enable_prefix_cache
    )
    return pool, store


def counts(store: ModelStore) -> tuple[int, int, int]:
    pages = store.stats()
    used = pages.pinned_pages + pages.reserved_pages
    assert pages.free_pages + pages.cached_pages + used == pages.num_pages
    return pages.free_pages, pages.cached_pages, used


def test_pages_cover_the_tokens_asked_for_and_come_back():
    pool, store = pool_of(8)
    table = pool.allocate(range(5), 9, None, reuse=True)
    assert len(set(table.page_ids)) == len(table.page_ids) == 3
    assert table.num_cached_tokens == 0
    assert counts(store) == (5, 0, 3)
    table.release()
    table.release()
    assert counts(store) == (8, 0, 0)


def test_full_pages_are_reusable_while_their_owner_still_runs():
    pool, store = pool_of(8)
    prompt = list(range(10))
    first = pool.allocate(prompt, 12, None, reuse=True)
    first.commit(prompt, 7)  # one page is full
    second = pool.allocate(prompt, 12, None, reuse=True)
    assert second.num_cached_tokens == 4
    assert second.page_ids[0] == first.page_ids[0]
    assert not set(second.page_ids[1:]) & set(first.page_ids)
    first.commit(prompt, 10)
    third = pool.allocate(prompt, 12, None, reuse=True)
    assert third.num_cached_tokens == 8
    for table in (first, second, third):
        table.release()
    assert counts(store) == (6, 2, 0)


def test_generated_tokens_are_reusable_by_the_next_turn():
    pool, _ = pool_of(8)
    table = pool.allocate([1, 2, 3], 8, None, reuse=True)
    said = [1, 2, 3, 4, 5, 6, 7, 8]
    for computed in range(3, 9):
        table.commit(said, computed)
    table.release()
    assert pool.allocate([*said, 9], 12, None, reuse=True).num_cached_tokens == 8
    assert pool.allocate([1, 2, 3, 4, 0, 0, 0, 0, 9], 12, None, reuse=True).num_cached_tokens == 4


def test_at_least_one_prompt_token_is_left_to_compute():
    pool, _ = pool_of(8)
    prompt = list(range(8))
    table = pool.allocate(prompt, 8, None, reuse=True)
    table.commit(prompt, 8)
    table.release()
    assert pool.allocate(prompt, 8, None, reuse=True).num_cached_tokens == 7


def test_two_that_computed_the_same_page_share_neither_ids_nor_a_second_entry():
    pool, store = pool_of(8)
    prompt = list(range(9))
    one, two = (pool.allocate(prompt, 9, None, reuse=True) for _ in range(2))
    one.commit(prompt, 9)
    two.commit(prompt, 9)
    assert not set(one.page_ids) & set(two.page_ids)
    one.release()
    two.release()
    assert counts(store) == (6, 2, 0)


def test_too_few_pages_take_nothing_and_old_prefixes_give_way():
    pool, store = pool_of(4)
    prompt = list(range(8))
    table = pool.allocate(prompt, 12, None, reuse=True)
    table.commit(prompt, 8)
    assert pool.allocate([9] * 5, 8, None, reuse=True) is None
    assert counts(store) == (1, 0, 3)
    table.release()
    assert counts(store) == (2, 2, 0)
    assert len(pool.allocate([9] * 5, 16, None, reuse=True).page_ids) == 4


def test_a_page_whose_beginning_could_be_copied_is_taken_if_no_other_is_left():
    pool, store = pool_of(2)
    table = pool.allocate([1, 2, 3, 4], 4, None, reuse=True)
    table.commit([1, 2, 3, 4], 4)
    table.release()
    table = pool.allocate([1, 2, 3, 9, 9, 9], 8, None, reuse=True)
    assert (len(table.page_ids), table.num_cached_tokens) == (2, 0)
    assert counts(store) == (0, 0, 2)
    table.release()


def test_a_table_grows_page_by_page_and_publishes_in_order():
    pool, _ = pool_of(8)
    ids = list(range(20))
    table = pool.allocate(ids[:5], 6, None, reuse=True)
    assert len(table.page_ids) == 2
    for num_tokens in range(6, 21):
        assert table.grow(num_tokens)
        assert len(table.page_ids) == -(-num_tokens // 4)
    assert len(set(table.page_ids)) == 5
    table.commit(ids, 3)
    table.commit(ids, 9)
    assert pool.allocate(ids, 20, None, reuse=True).num_cached_tokens == 8
    table.commit(ids, 19)  # over the ends of several reservations at once
    again = pool.allocate([*ids[:16], 7], 17, None, reuse=True)
    assert list(again.page_ids[:4]) == list(table.page_ids[:4])


def test_growing_fails_without_a_page_and_changes_nothing():
    pool, store = pool_of(3)
    table = pool.allocate([1, 2, 3], 8, None, reuse=True)
    other = pool.allocate([4], 2, None, reuse=False)
    before = list(table.page_ids)
    assert not table.grow(9)
    assert (list(table.page_ids), counts(store)) == (before, (0, 0, 3))
    other.release()
    assert table.grow(9)
    table.release()
    assert counts(store) == (3, 0, 0)


def test_what_goes_wrong_while_growing_leaves_nothing_behind(monkeypatch):
    pool, store = pool_of(8)
    prompt = list(range(9))
    table = pool.allocate(prompt, 9, None, reuse=True)
    table.commit(prompt, 9)
    table.release()

    def out_of_memory(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("kt_kvcache.Space.reserve", out_of_memory)
        with pytest.raises(MemoryError) as caught:
            pool.allocate(prompt, 9, None, reuse=True)
    # At once, while the traceback still holds all there was.
    assert counts(store) == (6, 2, 0)
    assert caught.traceback


def test_tenants_and_requests_without_reuse_share_nothing():
    pool, _ = pool_of(16)
    prompt = list(range(9))
    table = pool.allocate(prompt, 9, "a", reuse=True)
    table.commit(prompt, 9)
    assert pool.allocate(prompt, 9, "a", reuse=True).num_cached_tokens == 8
    assert pool.allocate(prompt, 9, "b", reuse=True).num_cached_tokens == 0
    assert pool.allocate(prompt, 9, None, reuse=True).num_cached_tokens == 0
    private = pool.allocate(prompt, 9, "a", reuse=False)
    assert private.num_cached_tokens == 0


def test_a_request_without_reuse_publishes_nothing():
    pool, store = pool_of(8)
    table = pool.allocate(range(9), 9, None, reuse=False)
    table.commit(range(9), 9)
    table.release()
    assert counts(store) == (8, 0, 0)


def test_the_prefix_cache_can_be_off():
    pool, store = pool_of(8, enable_prefix_cache=False)
    table = pool.allocate(range(9), 9, None, reuse=True)
    table.commit(range(9), 9)
    table.release()
    assert counts(store) == (8, 0, 0)


def test_a_page_order_seed_shuffles_ids_and_loses_none():
    plain = pool_of(32)[0].allocate(range(9), 128, None, reuse=True).page_ids
    shuffled = pool_of(32, page_order_seed=1)[0].allocate(range(9), 128, None, reuse=True).page_ids
    assert list(shuffled) != list(plain)
    assert sorted(shuffled) == sorted(plain) == list(range(32))


@pytest.mark.parametrize(
    "other",
    [
        {"weight_format": "int8"},
        {"group_size": 64},
        {"backend": "torch"},
        {"kv_dtype": "float32"},
        {"kv_page_size": 8},
    ],
)
def test_settings_that_change_kv_values_or_pages_are_a_namespace_of_their_own(other):
    _, plain = pool_of(4)
    _, changed = pool_of(4, **other)
    assert plain.space_of(None).ns_key != changed.space_of(None).ns_key
    assert plain.space_of(None).ns_key == pool_of(4)[1].space_of(None).ns_key


@pytest.mark.parametrize("changed", ["config.json", "tokenizer.json", "formats", "computed_by"])
def test_models_that_differ_share_nothing_on_disk(tmp_path: Path, changed: str) -> None:
    def ns_key(**origin) -> bytes:
        settings = {"kv_disk_path": str(tmp_path / "kv"), "kv_disk_gb": 0.01}
        model = Fingerprint(ModelFiles.open(tmp_path / "model"))
        origin = KVOrigin(model, **{"weight_formats": {}, "computed_by": "a"} | origin)
        _, store = pool_of(4, origin, **settings)
        key = store.space_of(None).ns_key
        store.close()
        return key

    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    before = ns_key()
    assert ns_key() == before
    if changed.endswith(".json"):
        (tmp_path / "model" / changed).write_text('{"rope_theta": 1}')
        assert ns_key() != before
    elif changed == "formats":
        assert ns_key(weight_formats={"linear": "int8"}) != before
    else:
        assert ns_key(computed_by="b") != before


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 1), min_size=1, max_size=16),  # prompt; few ids: many matches
            st.integers(0, 6),  # output
            st.booleans(),  # released in the middle
        ),
        max_size=15,
    )
)
def test_pages_are_conserved_and_reused_pages_hold_the_right_tokens(requests):
    pool, store = pool_of(12)
    written: dict[int, tuple[int, ...]] = {}  # page id → all tokens up to its end
    open_tables = []
    for prompt, output, release in requests:
        ids = prompt + [2] * output
        table = pool.allocate(prompt, len(ids), None, reuse=True)
        if table is None:
            assert open_tables
            for other in open_tables:
                other.release()
            open_tables = []
            continue
        cached = table.num_cached_tokens
        assert cached < len(prompt)
        for page in range(cached // 4):
            assert written[table.page_ids[page]] == tuple(ids[: page * 4 + 4])
        for page in range(cached // 4, len(ids) // 4):
            written[table.page_ids[page]] = tuple(ids[: page * 4 + 4])
        for computed in range(cached + 1, len(ids) + 1):
            table.commit(ids, computed)
        if release:
            table.release()
        else:
            open_tables.append(table)
        counts(store)
    for table in open_tables:
        table.release()
    assert counts(store)[2] == 0
