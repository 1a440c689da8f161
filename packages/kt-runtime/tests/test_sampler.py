# SPDX-License-Identifier: Apache-2.0
"""The sampler against plain definitions: which tokens may be drawn, how often, and from which
numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kt_runtime.core import SamplingParams
from kt_runtime.exec import sampler
from kt_runtime.exec.penalties import LogitAdjuster
from kt_runtime.exec.sampler import NonFiniteLogitsError, TokenSampler, draw, sample, uniform


def logits_of(probabilities) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, np.float64)).astype(np.float32)


def candidates(logits: np.ndarray, sampling: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """What the sampler may draw, with all ids written out."""
    ids, weights = sampler.candidates(logits, logits.max(), sampling)
    ids = np.arange(len(logits)) if ids is None else ids
    return ids[weights > 0], weights[weights > 0]


def kept_by_definition(logits: np.ndarray, sampling: SamplingParams) -> set[int]:
    """temperature → top-k → top-p → min-p by sorting everything."""
    weights = np.exp((logits - logits.max()) / np.float32(sampling.temperature))
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    kept_mass = weights.sum(dtype=np.float64)
    if 0 < sampling.top_k < len(weights):
        order = order[: sampling.top_k]
        kept_mass = weights[order].sum(dtype=np.float64)
    if sampling.top_p < 1:
        total, length = 0.0, 0
        while length < len(order) and total < sampling.top_p * kept_mass:
            total += float(weights[order[length]])
            length += 1
        order = order[:length]
    return {i for i in order if weights[i] >= np.float32(sampling.min_p)}


def chi_square(draws: list[int], probabilities: np.ndarray) -> float:
    expected = probabilities * len(draws)
    observed = np.bincount(draws, minlength=len(probabilities))
    return float(((observed - expected) ** 2 / expected).sum())


def test_greedy_takes_the_best_and_the_lower_id_on_ties():
    logits = np.array([0, 3, 1, 3], np.float32)
    assert sample(logits, SamplingParams(temperature=0), 1, 0) == 1
    assert sample(logits, SamplingParams(top_k=1), 1, 0) == 1
    assert sample(logits, SamplingParams(temperature=1e-60), 1, 0) in (1, 3)


def test_each_truncation_keeps_exactly_its_set():
    logits = logits_of([0.05, 0.4, 0.3, 0.15, 0.1])

    def kept(**settings) -> list[int]:
        return sorted(candidates(logits, SamplingParams(**settings))[0].tolist())

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [1, 2]
    assert kept(top_p=0.39) == [1]
    assert kept(top_p=0.69) == [1, 2]
    assert kept(top_p=0.71) == [1, 2, 3]
    assert kept(min_p=0.3) == [1, 2, 3]
    assert kept(min_p=0.9) == [1]


def test_top_p_counts_what_top_k_left_and_after_the_temperature():
    logits = logits_of([0.4, 0.3, 0.2, 0.1])
    # Of the two kept by top_k, the first holds 4/7 of the mass.
    assert candidates(logits, SamplingParams(top_k=2, top_p=0.56))[0].tolist() == [0]
    assert candidates(logits, SamplingParams(top_k=2, top_p=0.58))[0].tolist() == [0, 1]
    # Temperature 0.5 squares the probabilities: 16 : 9 : 4 : 1.
    assert candidates(logits, SamplingParams(temperature=0.5, top_p=0.53))[0].tolist() == [0]
    assert candidates(logits, SamplingParams(top_p=0.53))[0].tolist() == [0, 1]


def test_ties_at_the_edge_go_to_the_lower_ids():
    logits = np.zeros(10, np.float32)
    assert candidates(logits, SamplingParams(top_k=3))[0].tolist() == [0, 1, 2]
    assert candidates(logits, SamplingParams(top_p=0.3))[0].tolist() == [0, 1, 2]
    many = np.full(3000, -1, np.float32)
    many[::3] = 0
    kept = candidates(many, SamplingParams(top_p=0.8))[0].tolist()
    lower = [i for i in range(3000) if i % 3]
    assert kept == sorted([*range(0, 3000, 3), *lower[: len(kept) - 1000]])
    assert len(kept) == 1000 + int(0.8 * 2000 - 0.2 * 1000 * np.e) + 1


@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([2, 31, 700, 5000]),
    # Coarse logits tie often; wide ones make small candidate sets, flat ones large sets.
    steps=st.sampled_from([3, 10_000]),
    spread=st.sampled_from([0.1, 2.0, 8.0]),
    temperature=st.sampled_from([0.3, 1.0, 4.0]),
    top_k=st.sampled_from([0, 1, 5, 400]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.413, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
)
def test_candidates_are_those_of_a_full_sort(
    seed, size, steps, spread, temperature, top_k, top_p, min_p
):
    rng = np.random.default_rng(seed)
    logits = (rng.integers(0, steps, size) / steps * spread).astype(np.float32)
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, weights = candidates(logits, sampling)
    assert len(set(ids.tolist())) == len(ids) == len(weights)
    assert set(ids.tolist()) == kept_by_definition(logits, sampling)
    expected = np.exp((logits[ids] - logits.max()) / temperature)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_drawn_frequencies_follow_the_probabilities():
    probabilities = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    logits = logits_of(probabilities)
    draws = [sample(logits, SamplingParams(), 5, index) for index in range(4000)]
    assert chi_square(draws, probabilities) < 13.28  # 99th percentile with 4 degrees of freedom
    draws = [sample(logits, SamplingParams(top_k=2), seed, 0) for seed in range(4000)]
    assert set(draws) == {0, 1}
    assert chi_square(draws, np.array([5, 2]) / 7) < 6.63  # 99th percentile with 1


def test_forbidden_tokens_are_never_drawn():
    logits = logits_of([0, 0.5, 0, 0.5, 0])
    assert {sample(logits, SamplingParams(), 3, i) for i in range(200)} == {1, 3}


def test_random_numbers_are_uniform_and_depend_on_seed_and_index_alone():
    numbers = [uniform(seed, index) for seed in range(50) for index in range(40)]
    assert len(set(numbers)) == len(numbers)
    distance = np.abs(np.sort(numbers) - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 1.63 / 2000**0.5  # Kolmogorov-Smirnov at 1 %
    assert uniform(123, 45) == uniform(123, 45)
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)
    assert 0 <= min(numbers) <= max(numbers) < 1


def test_the_largest_random_number_draws_the_last_possible_token(monkeypatch):
    monkeypatch.setattr("kt_runtime.exec.sampler.uniform", lambda seed, index: 1 - 2.0**-52)
    rng = np.random.default_rng(0)
    for _ in range(50):
        logits = np.append(rng.normal(size=101).astype(np.float32), -np.inf).astype(np.float32)
        assert sample(logits, SamplingParams(), 0, 0) == 100


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(bad, temperature):
    logits = np.array([0, bad, 1], np.float32)
    with pytest.raises(NonFiniteLogitsError, match=r"\[sampler\] logits must be finite"):
        sample(logits, SamplingParams(temperature=temperature), 0, 0)


def test_logits_that_forbid_everything_are_an_error():
    with pytest.raises(NonFiniteLogitsError):
        sample(np.full(3, -np.inf, np.float32), SamplingParams(), 0, 0)


def test_the_row_is_not_modified():
    logits = np.arange(300, dtype=np.float32)
    settings = {"logit_bias": {3: 50}, "repetition_penalty": 2.0, "min_tokens": 5}
    for sampling in (
        SamplingParams(top_k=5, top_p=0.5, min_p=0.1, stop_token_ids=[299], **settings),
        SamplingParams(),
    ):
        TokenSampler(sampling, 0, [1, 2], [7], 300).next(logits)
        np.testing.assert_array_equal(logits, np.arange(300))


def test_draws_end_inside_their_block_whatever_the_rounding():
    weights = np.full(5000, 0.1, np.float32)
    numbers = [*np.arange(0, 5000, 7) / 5000, 1 - 2.0**-52, 512 / 5000, 1024 / 5000]
    for number in numbers:
        assert abs(draw(weights, number) - int(number * 5000)) <= 1


def warped(logits, sampling, prompt, output, eos) -> np.ndarray:
    """(vocab_size,) float32 after transformers' own processors and warpers, in its own order."""
    ids = torch.tensor([[*prompt, *output]])
    processors = LogitsProcessorList()
    if sampling.logit_bias:
        bias = {(token,): float(value) for token, value in sampling.logit_bias.items()}
        processors.append(SequenceBiasLogitsProcessor(bias))
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.min_tokens:
        enders = [*eos, *sampling.stop_token_ids]
        processors.append(
            MinNewTokensLengthLogitsProcessor(len(prompt), sampling.min_tokens, enders)
        )
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors(ids, torch.from_numpy(logits)[None].clone())[0].numpy()


@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([40, 3000]),
    bias=st.dictionaries(st.integers(0, 39), st.integers(-100, 100), max_size=4),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    min_tokens=st.sampled_from([0, 2, 30]),
    temperature=st.sampled_from([1.0, 0.6, 2.0]),
    top_k=st.sampled_from([0, 3, 30]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.1]),
    num_output=st.sampled_from([0, 1, 9]),
)
def test_probabilities_are_those_of_transformers(
    seed,
    size,
    bias,
    repetition_penalty,
    min_tokens,
    temperature,
    top_k,
    top_p,
    min_p,
    num_output,
):
    rng = np.random.default_rng(seed)
    prompt, output = (rng.integers(0, 40, n).tolist() for n in (6, num_output))
    logits = (rng.normal(size=size) * 3).astype(np.float32)
    sampling = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        logit_bias=bias,
        repetition_penalty=repetition_penalty,
        min_tokens=min_tokens,
        stop_token_ids=[11],
    )
    expected = warped(logits, sampling, prompt, output, eos=[5])
    adjuster = LogitAdjuster(sampling, prompt, [5], size)
    for token_id in output:
        adjuster.note(token_id)
    ids, weights = candidates(adjuster.adjusted(logits, num_output), sampling)
    drawable = ids[weights > 0]
    probabilities = torch.softmax(torch.from_numpy(expected), 0).numpy()
    assert set(drawable.tolist()) == set(np.flatnonzero(probabilities).tolist())
    np.testing.assert_allclose(weights / weights.sum(), probabilities[ids], rtol=2e-4, atol=1e-7)


def test_a_sampler_s_tokens_depend_on_its_own_past_only():
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(2, 30, 200)) * 2).astype(np.float32)
    settings = {"frequency_penalty": 1.5, "repetition_penalty": 1.2, "top_p": 0.9}

    def fresh(which: int) -> TokenSampler:
        sampling = SamplingParams(**settings) if which == 0 else SamplingParams(temperature=2.0)
        return TokenSampler(sampling, 40 + which, [1, 2, 3], [7], 200)

    alone = [[s.next(row) for row in rows[i]] for i, s in enumerate([fresh(0), fresh(1)])]
    pair = [fresh(0), fresh(1)]
    together = [[s.next(rows[i][n]) for i, s in enumerate(pair)] for n in range(30)]
    assert [list(column) for column in zip(*together, strict=True)] == alone
