# SPDX-License-Identifier: Apache-2.0
"""Router and the route op: every rule on every target against the oracle, and what it refuses."""

import numpy as np
import pytest

from kt_kernel import Graph, Router

from . import reference
from .cases import ROUTE, ROWS

F32 = np.float32
HASH = Router("sqrtsoftplus", "hash", scale=1.5)


def run(stream, logits, top_k, router, **arrays):
    ids = np.full((len(logits), top_k), -9, np.int32)
    weights = np.full((len(logits), top_k), np.nan, F32)
    stream.route(logits, ids, weights, router, **arrays)
    return ids, weights


@pytest.mark.parametrize("case", ROUTE.values(), ids=ROUTE)
def test_every_rule_matches(stream, case, rng):
    bias = rng.standard_normal(case.num_experts, F32) / 4 if case.bias else None
    for m in ROWS:
        logits = 2 * rng.standard_normal((m, case.num_experts), F32)
        ids, weights = run(stream, logits, case.top_k, case.router, bias=bias)
        expected_ids, expected = reference.route(logits, case.top_k, case.router, bias)
        assert np.array_equal(ids, expected_ids)
        reference.assert_close(weights, expected)


def test_a_hash_router_looks_its_experts_up(stream, rng):
    table = rng.integers(0, 24, (50, 6)).astype(np.int32)
    for m in ROWS:
        logits, tokens = rng.standard_normal((m, 24), F32), rng.integers(0, 50, m).astype(np.int32)
        ids, weights = run(stream, logits, 6, HASH, input_ids=tokens, hash_table=table)
        assert np.array_equal(ids, table[tokens])
        reference.assert_close(weights, reference.route(logits, 6, HASH, hashed=table[tokens])[1])


@pytest.mark.parametrize("case", ROUTE.values(), ids=ROUTE)
def test_ties_go_to_lower_ids(stream, case):
    ids, _ = run(stream, np.zeros((2, case.num_experts), F32), case.top_k, case.router)
    assert np.array_equal(ids, [list(range(case.top_k))] * 2)


def test_ties_between_groups_go_to_the_lower_one(stream):
    logits = np.array([[0, 1, 2, 2, 1, 0, 2, 2]], F32)  # groups of two: 1, 4, 1, 4
    router = Router("sigmoid", num_groups=4, topk_groups=1)
    assert np.array_equal(run(stream, logits, 2, router)[0], [[2, 3]])


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_large_logits(stream, score):
    logits = np.array([[1e4, -1e4, 9e3, 0.0]], F32)
    ids, weights = run(stream, logits, 2, Router(score))
    assert ids[0, 0] == 0
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1)


def test_logits_tell_apart_what_scores_do_not(stream):
    logits = np.array([[20.0, 30.0, 25.0]], F32)  # three sigmoids that round to 1
    assert run(stream, logits, 1, Router("sigmoid"))[0][0, 0] == 0
    assert run(stream, logits, 1, Router("sigmoid", "logit"))[0][0, 0] == 1


def test_the_score_of_a_small_logit_keeps_its_digits(stream):
    logits = -np.arange(0, 84, 0.5, dtype=F32)[None]
    ids, weights = run(stream, logits, logits.size, Router("sqrtsoftplus", norm="none"))
    value = np.sqrt(np.log1p(np.exp(logits.astype(np.float64))))
    reference.assert_close(weights, reference.Expected(value, 8 * reference.EPS * value))
    assert np.array_equal(ids[0], np.arange(logits.size))


@pytest.mark.parametrize("norm", ["sum", "clamp"])
def test_eps_decides_about_a_row_without_any_score(stream, norm):
    logits = np.full((1, 4), -200, F32)
    assert np.array_equal(run(stream, logits, 2, Router("sigmoid", norm=norm))[1], [[0, 0]])
    weights = run(stream, logits, 2, Router("sigmoid", norm=norm, norm_eps=0.0))[1]
    assert np.isnan(weights).all()


def test_small_weights_do_not_overflow_on_their_way(stream):
    router = Router("sigmoid", norm_eps=0.0, scale=1e3)
    weights = run(stream, np.full((1, 4), -86, F32), 2, router)[1]
    assert np.allclose(weights, 500)


@pytest.mark.parametrize("case", ROUTE.values(), ids=ROUTE)
def test_a_bad_row_is_marked_and_still_names_valid_experts(stream, case, rng):
    logits = rng.standard_normal((3, case.num_experts), F32)
    clean_ids, clean = run(stream, logits, case.top_k, case.router)
    logits[1, case.num_experts // 2] = np.nan
    ids, weights = run(stream, logits, case.top_k, case.router)
    assert np.isnan(weights[1]).all()
    assert ((ids[1] >= 0) & (ids[1] < case.num_experts)).all()
    assert np.array_equal(ids[[0, 2]], clean_ids[[0, 2]])
    assert np.array_equal(weights[[0, 2]], clean[[0, 2]])


def test_a_bad_row_of_a_hash_router_is_marked(stream, rng):
    logits, tokens = rng.standard_normal((2, 8), F32), np.zeros(2, np.int32)
    logits[0, 7] = np.nan
    table = np.array([[1, 2]], np.int32)
    ids, weights = run(stream, logits, 2, HASH, input_ids=tokens, hash_table=table)
    assert np.isnan(weights[0]).all()
    assert np.isfinite(weights[1]).all()
    assert ((ids >= 0) & (ids < 8)).all()


@pytest.mark.parametrize("case", ROUTE.values(), ids=ROUTE)
def test_rows_do_not_notice_their_batch(stream, case, rng):
    logits = rng.standard_normal((17, case.num_experts), F32)
    whole = run(stream, logits, case.top_k, case.router)
    alone = [run(stream, row[None], case.top_k, case.router) for row in logits]
    for i in range(2):
        assert np.array_equal(whole[i], np.concatenate([each[i] for each in alone]))


def test_a_graph_reads_tokens_at_replay_and_skips_padding(pool, target, rng):
    logits, table = rng.standard_normal((4, 8), F32), np.arange(40, dtype=np.int32).reshape(20, 2)
    tokens, num_rows = np.zeros(4, np.int32), np.array([4], np.int32)
    ids, weights = np.empty((4, 2), np.int32), np.empty((4, 2), F32)
    graph = Graph(pool, num_rows)
    graph.route(logits, ids, weights, HASH, input_ids=tokens, hash_table=table % 8)
    tokens[:], num_rows[0] = [3, 4, 99, -1], 2
    graph.replay()
    assert np.array_equal(ids, [[6, 7], [0, 1], [-1, -1], [-1, -1]])
    assert not weights[2:].any()
    num_rows[0] = 3
    with pytest.raises(ValueError, match=r" route: input_ids must lie in \[0, 20\); got 99$"):
        graph.replay()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"score": "tanh"}, r"score must be one of softmax, .*sparsemixer; got tanh"),
        ({"select_on": "bias"}, r"select_on must be one of score, logit, hash; got bias"),
        ({"group_score": "mean"}, r"group_score must be one of max, top2_sum; got mean"),
        ({"norm": "l2"}, r"norm must be one of none, sum, clamp; got l2"),
        ({"num_groups": 0}, r"num_groups must be at least 1; got 0"),
        ({"num_groups": 4, "topk_groups": 5}, r"topk_groups must lie in \[1, 4\]; got 5"),
        ({"select_on": "hash", "num_groups": 2}, r"num_groups must be 1 for hash; got 2"),
        ({"score": "sparsemixer"}, r"select_on must be logit for sparsemixer; got score"),
        ({"norm_eps": -1.0}, r"norm_eps must be finite and not negative; got -1"),
        ({"scale": np.inf}, r"scale must be finite; got inf"),
        ({"jitter_eps": np.nan}, r"jitter_eps must be finite and not negative; got nan"),
    ],
)
def test_impossible_rules_are_refused(rule, message):
    with pytest.raises(ValueError, match=rf"^\[router\] {message}$"):
        Router(**rule)


TOKENS, TABLE = np.zeros(1, np.int32), np.zeros((5, 2), np.int32)


@pytest.mark.parametrize(
    ("router", "arrays", "message"),
    [
        (Router(num_groups=3), {}, r"num_groups must divide num_experts 8; got 3"),
        (Router(num_groups=8), {}, r"top_k must lie in \[1, 1\]; got 2"),
        (Router(), {"top_k": 9}, r"top_k must lie in \[1, 8\]; got 9"),
        (Router(), {"num_experts": 2000}, r"num_experts must lie in \[1, 1024\]; got 2000"),
        (Router(), {"bias": np.zeros(7, F32)}, r"bias must .*; got .*"),
        (Router(), {"input_ids": TOKENS}, r"input_ids must be None unless .* hash; got one"),
        (Router(), {"hash_table": TABLE}, r"hash_table must be None unless .* hash; got one"),
        (HASH, {"hash_table": TABLE}, r"input_ids must be an array for hash; got None"),
        (HASH, {"input_ids": TOKENS}, r"hash_table must be an array for hash; got None"),
        (
            HASH,
            {"input_ids": TOKENS, "hash_table": TABLE, "bias": np.zeros(8, F32)},
            r"bias must be None for hash; got one",
        ),
        (
            HASH,
            {"input_ids": TOKENS, "hash_table": TABLE[:, :1].copy()},
            r"hash_table must .*; got .*",
        ),
        (
            HASH,
            {"input_ids": TOKENS + 5, "hash_table": TABLE},
            r"input_ids must lie in \[0, 5\); got 5",
        ),
        (
            HASH,
            {"input_ids": TOKENS, "hash_table": TABLE + 8},
            r"hash_table expert must lie in \[0, 8\); got 8",
        ),
        (
            HASH,
            {"input_ids": TOKENS, "hash_table": TABLE - 1},
            r"hash_table expert must lie in \[0, 8\); got -1",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(stream, router, arrays, message):
    given = dict(arrays)
    logits = np.zeros((1, given.pop("num_experts", 8)), F32)
    ids = np.full((1, given.pop("top_k", 2)), -9, np.int32)
    with pytest.raises(ValueError, match=rf"^\[route\] {message}$"):
        stream.route(logits, ids, np.empty(ids.shape, F32), router, **given)
    assert (ids == -9).all()


def test_what_is_written_overlaps_nothing(stream):
    logits, ids = np.zeros((1, 8), F32), np.zeros((1, 2), np.int32)
    for arrays in (
        (logits, ids, logits[:, :2].reshape(1, 2)),
        (logits, ids, ids.view(F32)),
        (logits, logits.view(np.int32)[:, 2:4].reshape(1, 2), np.zeros((1, 2), F32)),
    ):
        with pytest.raises(ValueError, match=r"^\[route\] topk_\w+ must not overlap "):
            stream.route(*arrays, Router())
