# SPDX-License-Identifier: Apache-2.0
"""checkpoint.gguf_model: GGUF files give the model that the same weights give as safetensors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from kt_kernel import ThreadPool
from kt_runtime.checkpoint.checkpoint import open_checkpoint
from kt_runtime.models.registry import load_model
from kt_runtime.ops.kt_ops import KtOps
from kt_runtime.ops.torch_ops import TorchOps
from kt_runtime.protocols import CausalLM, QuantTensor

from .paged_batch import PagedSequences
from .test_models import ROUNDING, median_error
from .tiny_gguf import write_tiny
from .tiny_models import random_ids, tiny_checkpoint

NUM_TOKENS = 24
_directories: list[TemporaryDirectory[str]] = []


@cache
def ops_of(backend: str) -> TorchOps | KtOps:
    return TorchOps() if backend == "torch" else KtOps(ThreadPool(2), max_tokens=NUM_TOKENS)


@cache
def written(name: str, kind: str) -> tuple[Path, Path]:
    """(the GGUF file, the safetensors judge). "mixed": as Q4_K_M mixes types within a layer."""
    _directories.append(TemporaryDirectory(prefix="kt-gguf-"))

    def mixed(tensor: str) -> Type:
        if "ffn_down" in tensor or "attn_v" in tensor:
            return Type.Q6_K if ".1." in tensor else Type.Q4_K
        return {"token_embd.weight": Type.Q5_K, "output.weight": Type.Q6_K}.get(tensor, Type.Q4_K)

    type_of = mixed if kind == "mixed" else lambda _: Type[kind]
    return write_tiny(name, Path(_directories[-1].name), type_of)


def run(model: CausalLM, backend: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    ids = random_ids(NUM_TOKENS, model.shape.vocab_size)
    pages = PagedSequences(model.shape, 1, NUM_TOKENS, dtype=dtype)
    return model.forward(ops_of(backend), pages.batch([0], [ids]), pages.kv)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "F32"),
        ("llama", "F16"),
        ("llama", "Q4_1"),
        ("llama-wide", "mixed"),
        ("mixtral", "BF16"),
        ("mixtral", "Q4_0"),
        ("mixtral-ragged-tied", "F32"),
        ("qwen3_moe", "Q8_0"),
        ("qwen3_moe-wide", "mixed"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "kt"])
def test_float32_logits_are_those_of_the_same_weights_as_safetensors(
    name: str, kind: str, backend: str
) -> None:
    path, judge = written(name, kind)
    got = run(load_model(path, ops_of(backend), "float32"), backend)
    want = run(load_model(judge, ops_of(backend), "float32"), backend)
    # The file holds eps as float32, config.json as a decimal.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "F16"),
        ("llama", "Q4_1"),
        ("llama-wide", "mixed"),
        ("mixtral", "Q4_0"),
        ("qwen3_moe", "Q8_0"),
        ("qwen3_moe-wide", "mixed"),
    ],
)
def test_native_rounds_activations_only(name: str, kind: str) -> None:
    """The weights are the file's own blocks: what is lost is the int8 of activations."""
    path, judge = written(name, kind)
    want = run(load_model(judge, ops_of("torch"), "float32"), "torch")
    got = {}
    for backend in ("kt", "torch"):
        model = load_model(path, ops_of(backend), "native")
        got[backend] = run(model, backend)
        expected = {"mixed": {"q4_k", "q6_k"}}.get(kind, {kind.lower()})
        assert set(model.weight_formats["linear"].split("+")) == expected
    products = 6 * model.shape.num_layers + 1
    predicted = products**0.5 * ROUNDING["int8"] if kind != "F16" else 1e-5
    assert median_error(got["kt"], want) < 3 * predicted
    assert median_error(got["kt"], got["torch"]) < predicted / 2


def test_blocks_reach_the_packer_as_they_are_in_the_file() -> None:
    """Also those of queries, whose rows only change places."""
    path, _ = written("llama-wide", "mixed")
    source = open_checkpoint(path).open_tensors()
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    down = source.get("model.layers.0.mlp.down_proj.weight")
    assert isinstance(down, QuantTensor)
    assert np.array_equal(down.blocks, stored["blk.0.ffn_down.weight"].data)
    query = source.get("model.layers.0.self_attn.q_proj.weight")
    assert isinstance(query, QuantTensor)
    rows = stored["blk.0.attn_q.weight"].data
    # Head 1's second half begins where its second pair member was: head_dim 64.
    assert np.array_equal(query.blocks[64 + 32 + 5], rows[64 + 2 * 5 + 1])
    assert sorted(map(bytes, query.blocks)) == sorted(map(bytes, rows))


def test_experts_that_lie_together_are_given_together() -> None:
    source = open_checkpoint(written("qwen3_moe", "Q8_0")[0]).open_tensors()
    name = "model.layers.0.mlp.experts.{}.up_proj.weight".format
    names = [n for e in range(99) if (n := name(e)) in source.names()]
    together = source.get_all(names)
    assert together is not None
    assert len(together) == len(names) > 1
    for each, one in zip(together, map(source.get, names), strict=True):
        assert isinstance(one, QuantTensor)
        assert np.array_equal(each, one.blocks)
    assert source.get_all(names[:-1]) is None  # not all of them
    assert source.get_all(names[::-1]) is None


def test_projections_of_one_layer_may_differ_in_format() -> None:
    path, _ = written("qwen3_moe-wide", "mixed")
    model = load_model(path, ops_of("kt"), "native")
    assert model.weight_formats["experts"] == "q4_k+q6_k"
    assert model.weight_formats["embedding"] == "q5_k"
    assert model.weight_formats["router"] == "float32"


@pytest.mark.parametrize("weight_format", ["bf16", "int8", "int4"])
def test_other_formats_are_packed_from_the_values(weight_format: Any) -> None:
    path, judge = written("qwen3_moe", "Q8_0")
    got, want = (run(load_model(p, ops_of("kt"), weight_format), "kt") for p in (path, judge))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_split_files_are_one_model(tmp_path: Path) -> None:
    first, judge = write_tiny("mixtral", tmp_path, lambda _: Type.Q8_0, split=7)
    assert first.name.startswith("model-00001-of-")
    assert len(list(tmp_path.glob("*.gguf"))) > 3
    got, want = (run(load_model(p, ops_of("torch"), "float32"), "torch") for p in (first, judge))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_linear_scaling_stretches_positions(tmp_path: Path) -> None:
    scaled = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0}
    path, judge = write_tiny("llama", tmp_path, lambda _: Type.F32, **scaled)
    config = json.loads((judge / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    (judge / "config.json").write_text(json.dumps(config))
    got, want = (run(load_model(p, ops_of("torch"), "float32"), "torch") for p in (path, judge))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_stored_rotary_divisors_are_llama_3_s_scaling(tmp_path: Path) -> None:
    model, _ = tiny_checkpoint("llama-ragged-tied-biases-scaled")
    plain = 1e4 ** (-np.arange(0, 24, 2) / 24)
    divisors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    path, judge = write_tiny(
        "llama-ragged-tied-biases-scaled",
        tmp_path,
        lambda _: Type.F32,
        extra={"rope_freqs.weight": divisors},
    )
    got, want = (run(load_model(p, ops_of("torch"), "float32"), "torch") for p in (path, judge))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    without = write_tiny("llama-ragged-tied-biases-scaled", tmp_path / "b", lambda _: Type.F32)[0]
    other = run(load_model(without, ops_of("torch"), "float32"), "torch")
    assert (other - want).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__architecture": "mamba"}, r"architecture must be one of llama, qwen3moe; got"),
        ({"llama__block_count": 4}, r"llama.block_count must be the number of layers .* got 4"),
        ({"llama__block_count": 2**32 - 1}, r"llama.block_count must be"),
        ({"llama__attention__head_count": 5}, r"head_count heads of 32 must be the 128 rows .* 5"),
        ({"llama__attention__head_count_kv": 3}, r"rows of blk.0.attn_k.weight .* 3 heads; got 64"),
        ({"llama__context_length": 2**31}, r"llama.context_length must be at most 2097152; got"),
        ({"llama__rope__dimension_count": 16}, r"rope.dimension_count must be the head size 32"),
        ({"llama__attention__sliding_window": 4096}, r"sliding_window must be 0 or absent"),
        ({"llama__logit_scale": 0.5}, r"llama.logit_scale must be 0.0 or absent; got 0.5"),
        ({"llama__rope__scale_linear": 4.0}, r"rope.scale_linear must be 1.0 or absent; got 4.0"),
        ({"llama__rope__scaling__type": "yarn"}, r"scaling.type must be none or linear; got .yarn"),
        ({"llama__expert_count": 8}, r"expert_count must be the first axis of .* got 8"),
        ({"llama__embedding_length": "128"}, r"embedding_length in .*model.gguf must be a whole"),
    ],
)
def test_setting_that_cannot_be_honoured_is_refused_by_key(
    tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    path, _ = write_tiny("llama", tmp_path, lambda _: Type.F32, **metadata)
    with pytest.raises(ValueError, match=message):
        load_model(path, TorchOps(), "native")


def test_tensor_that_no_model_reads_is_refused(tmp_path: Path) -> None:
    extra = {"blk.1.attn_sinks.weight": np.ones(4, np.float32)}
    path, _ = write_tiny("llama", tmp_path, lambda _: Type.F32, extra=extra)
    with pytest.raises(ValueError, match=r"got 1 unknown ones: blk.1.attn_sinks.weight"):
        load_model(path, TorchOps(), "native")


def test_a_truncated_file_is_refused_before_anything_is_packed(tmp_path: Path) -> None:
    path, _ = write_tiny("llama", tmp_path, lambda _: Type.F32)
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(ValueError, match=r"\[gguf\] tensor .* must end within .* complete\?"):
        open_checkpoint(path)
