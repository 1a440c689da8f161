# SPDX-License-Identifier: Apache-2.0
"""The offline face: what comes in as text or ids comes out in order, cut where it should be."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from kt_runtime import LLM, ContextLengthError, SamplingParams
from kt_runtime.llm import GREEDY, Completion

from .tiny_models import expected_logits, random_ids, tiny_checkpoint
from .tiny_tokenizers import byte_level

SETTINGS = {"num_pages": 40, "num_threads": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """qwen3_moe with a byte-level tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("llm") / "model"
    shutil.copytree(tiny_checkpoint("qwen3_moe")[1], path)
    byte_level().save(str(path / "tokenizer.json"))
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return path


@pytest.fixture(scope="module")
def llm(checkpoint):
    with LLM(checkpoint, weight_format="float32", **SETTINGS) as llm:
        yield llm


def greedy(max_tokens: int = 12, **settings) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **settings)


def test_one_prompt_or_many_as_text_or_ids(llm):
    ids = llm.tokenizer.encode("hello world", add_special_tokens=True)
    alone = llm.generate("hello world", greedy())
    assert [len(c.token_ids) for c in alone] == [12]
    assert alone[0].text == llm.tokenizer.decode(alone[0].token_ids)
    same = [
        llm.generate(ids, greedy()),
        llm.generate(np.array(ids), greedy()),
        llm.generate([ids], greedy()),
        llm.generate(torch.tensor(ids), greedy()),
        llm.generate(torch.tensor([ids]), greedy()),
    ]
    for completions in same:
        assert [c.token_ids for c in completions] == [alone[0].token_ids]
    other = llm.generate(["goodbye", ids, "hello world"], greedy())
    assert [c.token_ids for c in other[1:]] == [alone[0].token_ids] * 2
    assert other[0].token_ids != alone[0].token_ids
    assert llm.generate([], greedy()) == []
    assert len(llm.generate([torch.tensor([1]), torch.tensor([2])], greedy(1))) == 2


def test_usage_is_the_engines(llm):
    prompt = random_ids(33, 512, seed=77)
    first, again = (llm.generate(prompt, greedy(5))[0] for _ in range(2))
    assert (first.num_prompt_tokens, first.num_cached_tokens, first.num_generated_tokens) == (
        33,
        0,
        5,
    )
    assert again.num_cached_tokens == 32
    assert (first.text, first.finish_reason) == (again.text, "length")


def test_without_sampling_params_it_is_greedy(llm):
    assert GREEDY.temperature == 0
    prompt = random_ids(500, 512)
    (completion,) = llm.generate(prompt)
    expected = llm.generate(prompt, SamplingParams(temperature=0.0))
    assert completion.token_ids == expected[0].token_ids
    assert 1 <= len(completion.token_ids) <= 12  # the context holds 512


def test_more_prompts_than_may_wait_all_get_answers(checkpoint):
    with LLM(checkpoint, weight_format="float32", max_waiting=2, max_num_seqs=2, **SETTINGS) as llm:
        completions = llm.generate([[i] for i in range(9)], greedy(3))
        each = [llm.generate([i], greedy(3))[0].token_ids for i in range(9)]
    assert [c.token_ids for c in completions] == each


def test_stop_strings_cut_the_text_and_end_the_request(llm):
    whole = llm.generate("hello", greedy(30))[0]
    stop = whole.text[9:11]
    before = llm.stats()
    cut = llm.generate("hello", greedy(30, stop=(stop,)))[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert len(cut.token_ids) < 30
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert cut.num_generated_tokens == len(cut.token_ids)
    after = llm.stats()
    assert after.generated_tokens - before.generated_tokens == len(cut.token_ids)
    assert after.finished["stop"] - before.finished.get("stop", 0) == 1
    assert after.pages_used == 0


def test_the_token_that_ends_an_answer_is_not_part_of_its_text(llm):
    whole = llm.generate("hello", greedy(20))[0]
    last = whole.token_ids[7]
    cut = llm.generate("hello", greedy(20, stop_token_ids=(last,)))[0]
    length = whole.token_ids.index(last)
    assert cut.token_ids == whole.token_ids[: length + 1]
    assert cut.text == llm.tokenizer.decode(whole.token_ids[:length])
    assert cut.finish_reason == "stop"


def test_logprobs_are_those_of_transformers(llm):
    prompt = random_ids(20, 512, seed=5)
    (answer,) = llm.generate(prompt, greedy(6, logprobs=2, prompt_logprobs=1))
    logits = expected_logits(tiny_checkpoint("qwen3_moe")[0], [*prompt, *answer.token_ids])
    expected = torch.log_softmax(logits.double(), -1).numpy()
    assert answer.prompt_logprobs[0] is None
    reported = [*answer.prompt_logprobs[1:], *answer.logprobs]
    assert [item.token_id for item in reported] == [*prompt[1:], *answer.token_ids]
    for position, item in enumerate(reported):
        np.testing.assert_allclose(item.logprob, expected[position, item.token_id], atol=1e-4)
        np.testing.assert_allclose(item.top[0][1], expected[position].max(), atol=1e-4)
    assert llm.generate(prompt, greedy(6))[0].logprobs is None


def test_chat_renders_the_template(llm):
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    ids = llm.tokenizer.encode("[user]hello[assistant]hi")
    expected = llm.generate(ids, greedy())[0]
    assert llm.chat(talk, greedy())[0].token_ids == expected.token_ids
    both = llm.chat([talk, talk[:1]], greedy())
    assert [c.token_ids == expected.token_ids for c in both] == [True, False]


def test_logits_are_those_of_transformers(llm):
    ids = random_ids(40, 512)
    logits = llm.logits(ids)
    assert logits.shape == (40, 512)
    assert logits.dtype == np.float32
    expected = expected_logits(tiny_checkpoint("qwen3_moe")[0], ids)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_array_equal(llm.logits(np.array(ids), chunk_size=1), logits)
    np.testing.assert_array_equal(llm.logits(ids, chunk_size=16), logits)


def test_one_bad_prompt_refuses_all_and_leaves_nothing_behind(llm):
    for bad, error in (([600], ValueError), ([], ValueError), ([1] * 600, ContextLengthError)):
        with pytest.raises(error, match=r"\[engine.add\]"):
            llm.generate([[1, 2], bad], greedy())
        assert not llm.engine.has_work
    with pytest.raises(ValueError, match=r"\[engine.add\]"):
        llm.logits([])
    assert len(llm.generate([1, 2], greedy())) == 1


@pytest.mark.parametrize("ids", [[1.5], np.array([1.0]), torch.tensor([[1, 2]]), "12", None])
def test_ids_that_are_no_ids_are_refused_not_rounded(llm, ids):
    with pytest.raises(ValueError, match=r"\[llm.logits\] token ids must be whole numbers in one"):
        llm.logits(ids)
    if not isinstance(ids, (str, torch.Tensor)):  # those are prompts
        with pytest.raises(ValueError, match=r"\[llm.generate\] .* must be"):
            llm.generate(ids, greedy())


def test_logits_that_break_off_leave_nothing_running(llm, monkeypatch):
    step = llm.engine.step
    steps = []

    def interrupted():
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.logits([1, 2, 3, 4], chunk_size=1)
    assert not llm.engine.has_work
    assert len(llm.generate([1, 2], greedy(3))) == 1


def test_an_interrupt_leaves_nothing_running(llm, monkeypatch):
    step = llm.engine.step
    steps = []

    def interrupted():
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate("hello", greedy(100))
    assert not llm.engine.has_work
    assert llm.stats().pages_used == 0


def test_a_checkpoint_without_tokenizer_speaks_ids(tmp_path):
    with LLM(tiny_checkpoint("mixtral")[1], weight_format="float32", **SETTINGS) as llm:
        (completion,) = llm.generate([1, 2, 3], greedy(4))
        assert isinstance(completion, Completion)
        assert (completion.text, len(completion.token_ids)) == ("", 4)
        with pytest.raises(ValueError, match=r"\[llm.generate\] text needs a tokenizer"):
            llm.generate("hello", greedy())
        with pytest.raises(ValueError, match=r"\[llm.generate\] text needs a tokenizer"):
            llm.generate([1], greedy(stop=("x",)))
        with pytest.raises(ValueError, match=r"\[llm.chat\]"):
            llm.chat([{"role": "user", "content": "hello"}])


def test_a_checkpoint_without_chat_template_says_so(tmp_path, checkpoint):
    path = tmp_path / "model"
    shutil.copytree(checkpoint, path)
    (path / "tokenizer_config.json").write_text("{}")
    with (
        LLM(path, weight_format="float32", **SETTINGS) as llm,
        pytest.raises(ValueError, match=r"\[llm.chat\] the checkpoint must have a chat template"),
    ):
        llm.chat([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"path": "no-such-model"}, ValueError, r"\[model\] .*'no-such-model'"),
        ({"weight_format": "fp8"}, ValueError, r"\[config\] weight_format must be one of"),
        ({"device": "cuda"}, ValueError, r"\[config\] device must be one of auto, cpu"),
        (
            {"kv_page_size": 0},
            ValueError,
            r"\[config\] kv_page_size must be a whole number of at least 1; got 0",
        ),
        ({"pagesize": 1}, TypeError, "pagesize"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(checkpoint, arguments, error, match):
    with pytest.raises(error, match=match):
        LLM(**{"path": checkpoint} | arguments)
