# SPDX-License-Identifier: Apache-2.0
"""models.*: logits of every architecture against transformers, through Batch and pages built by
hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from kt_kernel import ThreadPool
from kt_runtime.models.registry import load_model
from kt_runtime.ops.kt_ops import KtOps
from kt_runtime.ops.recording import Recording, RowBuffers
from kt_runtime.ops.torch_ops import TorchOps
from kt_runtime.protocols import Batch, CausalLM

from .paged_batch import PagedSequences
from .tiny_models import TINY, expected_logits, random_ids, tiny_checkpoint

# transformers in float32 differs from itself by about 1e-6 between its own expert implementations
# on these models, and from us by about 5e-6; a wrong router or a missing bias costs 0.1 and more.
TOLERANCE = 1e-4
NUM_TOKENS = 48


@cache
def ops_of(backend: str) -> TorchOps | KtOps:
    return TorchOps() if backend == "torch" else KtOps(ThreadPool(2), max_tokens=2 * NUM_TOKENS)


@cache
def loaded(name: str, backend: str, weight_format: str = "float32") -> CausalLM:
    return load_model(tiny_checkpoint(name)[1], ops_of(backend), weight_format)


@cache
def prompt_and_logits(name: str, seed: int = 1) -> tuple[list[int], torch.Tensor]:
    model, _ = tiny_checkpoint(name)
    ids = random_ids(NUM_TOKENS, model.config.vocab_size, seed)
    return ids, expected_logits(model, ids)


def run(name: str, backend: str, chunks: Sequence[int], page_size: int = 4) -> torch.Tensor:
    """Logits of the prompt, computed in steps of these sizes."""
    ids, _ = prompt_and_logits(name)
    model = loaded(name, backend)
    pages = PagedSequences(model.shape, 1, NUM_TOKENS, page_size)
    logits, begin = [], 0
    for size in chunks:
        batch = pages.batch([0], [ids[begin : begin + size]])
        logits.append(model.forward(ops_of(backend), batch, pages.kv))
        begin += size
    assert begin == NUM_TOKENS
    return torch.cat(logits)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("backend", ["torch", "kt"])
def test_logits_equal_those_of_transformers(name: str, backend: str) -> None:
    got = run(name, backend, [NUM_TOKENS])
    _, want = prompt_and_logits(name)
    assert (got - want).abs().max() < TOLERANCE
    # Two tokens that the judge itself tells apart only in the last bit may swap.
    best, second = want.topk(2).values.unbind(-1)
    clear = best - second > TOLERANCE
    assert clear.float().mean() > 0.9
    assert torch.equal(got.argmax(-1)[clear], want.argmax(-1)[clear])


@pytest.mark.parametrize("name", TINY)
def test_kernels_give_the_same_bits_however_the_prompt_is_cut(name: str) -> None:
    whole = run(name, "kt", [NUM_TOKENS])
    assert torch.equal(run(name, "kt", [17, 30, 1]), whole)
    assert torch.equal(run(name, "kt", [1] * NUM_TOKENS, page_size=1), whole)


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_moe", "glm4_moe"])
def test_torch_gives_the_same_logits_however_the_prompt_is_cut(name: str) -> None:
    whole = run(name, "torch", [NUM_TOKENS])
    assert (run(name, "torch", [17, 30, 1]) - whole).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_moe", "glm4_moe"])
@pytest.mark.parametrize("backend", ["torch", "kt"])
def test_sequences_of_one_batch_do_not_see_each_other(name: str, backend: str) -> None:
    """A decode row of one sequence beside a prefill chunk of another."""
    model = loaded(name, backend)
    ids, want = prompt_and_logits(name)
    others, others_want = prompt_and_logits(name, seed=2)
    pages = PagedSequences(model.shape, 2, NUM_TOKENS)
    model.forward(ops_of(backend), pages.batch([0], [ids[:-1]]), pages.kv)
    batch = pages.batch([1, 0], [others[:30], ids[-1:]])
    got = model.forward(ops_of(backend), batch, pages.kv)
    assert (got[:30] - others_want[:30]).abs().max() < TOLERANCE
    assert (got[30] - want[-1]).abs().max() < TOLERANCE


@pytest.mark.parametrize("backend", ["torch", "kt"])
def test_only_wanted_rows_get_logits(backend: str) -> None:
    model = loaded("qwen3_moe", backend)
    ids, want = prompt_and_logits("qwen3_moe")
    pages = PagedSequences(model.shape, 1, NUM_TOKENS)
    batch = pages.batch([0], [ids], logits_rows=[NUM_TOKENS - 1, 3])
    got = model.forward(ops_of(backend), batch, pages.kv)
    assert got.shape == (2, model.shape.vocab_size)
    assert (got - want[[-1, 3]]).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", TINY)
def test_replayed_graph_gives_the_bits_of_eager_ops(name: str) -> None:
    """Two sequences decode on a graph recorded for four rows, of which two are live."""
    model, ops = loaded(name, "kt"), ops_of("kt")
    assert isinstance(ops, KtOps)
    prompts = [prompt_and_logits(name)[0], prompt_and_logits(name, seed=2)[0]]
    eager, replayed = (PagedSequences(model.shape, 2, NUM_TOKENS) for _ in range(2))
    for pages in (eager, replayed):
        model.forward(ops, pages.batch([0, 1], [p[:20] for p in prompts]), pages.kv)

    static = decode_buffers(capacity=4, max_pages=replayed.block_table.shape[1])
    num_rows = torch.tensor([2], dtype=torch.int32)
    recording = Recording(ops.pool, num_rows, RowBuffers(4))
    graph_logits = model.forward(ops.recorder(recording), static, replayed.kv)
    for step in range(20, 24):
        new = [[p[step]] for p in prompts]
        want = model.forward(ops, eager.batch([0, 1], new), eager.kv)
        copy_rows(replayed.batch([0, 1], new), static)
        recording.replay()
        assert torch.equal(graph_logits[:2], want)


def decode_buffers(capacity: int, max_pages: int) -> Batch:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32)

    return Batch(
        input_ids=zeros(capacity),
        positions=zeros(capacity),
        slot_mapping=zeros(capacity),
        block_table=zeros(capacity, max_pages),
        seq_lens=zeros(capacity),
        cu_seqlens_q=torch.arange(capacity + 1, dtype=torch.int32),
        logits_rows=None,
    )


def copy_rows(batch: Batch, static: Batch) -> None:
    for name in ("input_ids", "positions", "slot_mapping", "block_table", "seq_lens"):
        rows = getattr(batch, name)
        getattr(static, name)[: len(rows)] = rows


def test_recorder_refuses_selected_rows() -> None:
    model, ops = loaded("mixtral", "kt"), ops_of("kt")
    assert isinstance(ops, KtOps)
    pages = PagedSequences(model.shape, 1, 8)
    batch = pages.batch([0], [[1, 2]], logits_rows=[1])
    with pytest.raises(ValueError, match=r"\[take_rows\] a recorded batch must want .* all rows"):
        model.forward(ops.recorder(Recording(ops.pool)), batch, pages.kv)


@pytest.mark.parametrize("name", ["mixtral", "glm4_moe"])
def test_settings_of_transformers_4_mean_the_same(name: str, tmp_path: Path) -> None:
    """Before version 5 rope settings stood at the top level and scaling under its own key."""
    path = Path(shutil.copytree(tiny_checkpoint(name)[1], tmp_path / "old"))
    config = json.loads((path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    assert rope["rope_type"] == "default"
    config |= {key: value for key, value in rope.items() if key != "rope_type"}
    config["rope_scaling"] = None
    (path / "config.json").write_text(json.dumps(config))
    model, ops = load_model(path, ops_of("torch"), "float32"), ops_of("torch")
    ids, want = prompt_and_logits(name)
    pages = PagedSequences(model.shape, 1, NUM_TOKENS)
    got = model.forward(ops, pages.batch([0], [ids]), pages.kv)
    assert (got - want).abs().max() < TOLERANCE


# Relative RMS error that rounding adds to one matrix product of normally distributed numbers, by
# format: bf16 errors are uniform within one ulp, 2**-7 of the power of two below the value (1.5 of
# it on average); integer errors within one step, absmax / limit, and absmax of 32 normal numbers is
# 2.1 sigma on average (int4: 8 steps). Uniform within a step: step / sqrt(12).
ROUNDING = {
    "float32": 0.0,
    "bf16": 2**-7 / 1.5 / 12**0.5,
    "int8": 2.1 / 127 / 12**0.5,
    "int4": 2.1 / 8 / 12**0.5,
}


def predicted_error(model: CausalLM, experts: str, others: str) -> float:
    """Errors of independent products add in squares. Each layer has three in a row in attention
    (q·k aside, its v and o) and three in the MLP; the head comes last. Weights and activations
    are both rounded; activations of int4 weights to int8."""
    per_layer = 3 * ROUNDING[experts] ** 2 + 3 * ROUNDING[others] ** 2
    activations = 6 * ROUNDING[others] ** 2
    head = 2 * ROUNDING[others] ** 2
    return (model.shape.num_layers * (per_layer + activations) + head) ** 0.5


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    ("weight_format", "others"), [("bf16", "bf16"), ("int8", "int8"), ("int4", "int8")]
)
def test_rounded_weights_cost_what_their_format_explains(
    name: str, weight_format: str, others: str
) -> None:
    """Of the median token: a rounded input of a router may choose another expert for some."""
    ids, want = prompt_and_logits(name)
    got = {}
    for backend in ("kt", "torch"):
        model = loaded(name, backend, weight_format)
        pages = PagedSequences(model.shape, 1, NUM_TOKENS, dtype=torch.bfloat16)
        got[backend] = model.forward(ops_of(backend), pages.batch([0], [ids]), pages.kv)
    # Without experts nothing is int4.
    mlp = weight_format if "experts" in model.weight_formats else others
    predicted = predicted_error(model, mlp, others)
    # Norms and softmax may amplify what the products add, or the residual stream drown it.
    assert predicted / 6 < median_error(got["kt"], want) < 3 * predicted
    # Both backends round the same numbers the same way, but for a few on the edge.
    assert median_error(got["kt"], got["torch"]) < predicted / 2


def median_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """RMS error of a row over the row's RMS, the median of rows."""
    errors = (got - want).square().mean(-1) / want.square().mean(-1)
    return float(errors.sqrt().median())
