# SPDX-License-Identifier: Apache-2.0
"""models.registry and models.weights: what loads, in which format, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kt_runtime.models.registry import BUILDERS, load_model
from kt_runtime.ops.torch_ops import TorchExperts, TorchLinear, TorchOps
from kt_runtime.protocols import Projection, QuantTensor

from .paged_batch import PagedSequences
from .tiny_models import random_ids, tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A mixtral checkpoint to spoil."""
    return Path(shutil.copytree(tiny_checkpoint("mixtral")[1], tmp_path / "copy"))


def edit_config(path: Path, **settings: Any) -> None:
    config = json.loads((path / "config.json").read_text()) | settings
    (path / "config.json").write_text(json.dumps(config))


def edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors")


class SpyOps(TorchOps):
    """Notes the format of every matrix, by its shape or kind."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: dict[str, set[str]] = {}

    def pack_embedding(self, weight: Tensor) -> Tensor:
        self.formats.setdefault("embedding", set()).add({4: "float32", 2: "bf16"}[weight.itemsize])
        return super().pack_embedding(weight)

    def pack_linear(
        self, weight: Tensor, weight_format: str, bias: Tensor | None = None
    ) -> TorchLinear:
        kind = {8: "router", 512: "lm_head"}.get(len(weight), "linear")
        self.formats.setdefault(kind, set()).add(weight_format)
        return super().pack_linear(weight, weight_format, bias)

    def pack_experts(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        top_k: int,
        weight_formats: Mapping[Projection, str],
        load: Callable[[int, Projection], Tensor | QuantTensor],
        load_all: Callable[[Projection], Tensor | None] = lambda _: None,
        name: str = "",
    ) -> TorchExperts:
        self.formats.setdefault("experts", set()).update(weight_formats.values())
        return super().pack_experts(
            num_experts,
            hidden_size,
            intermediate_size,
            top_k,
            weight_formats,
            load,
            load_all,
            name,
        )


def formats_of(path: Path, weight_format: Any) -> dict[str, set[str]]:
    ops = SpyOps()
    model = load_model(path, ops, weight_format)
    said = {kind: set(formats.split("+")) for kind, formats in model.weight_formats.items()}
    assert said == ops.formats  # what the model reports is what was packed
    return ops.formats


def test_int4_packs_experts_to_int4_and_the_rest_to_int8(checkpoint: Path) -> None:
    assert formats_of(checkpoint, "int4") == {
        "experts": {"int4"},
        "linear": {"int8"},
        "lm_head": {"int8"},
        "embedding": {"float32"},
        "router": {"float32"},
    }


def test_native_follows_the_stored_dtype_of_each_matrix(checkpoint: Path) -> None:
    def half(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if "q_proj" not in name:
                tensors[name] = tensor.bfloat16()

    edit_tensors(checkpoint, half)
    formats = formats_of(checkpoint, "native")
    assert formats["experts"] == formats["embedding"] == formats["lm_head"] == {"bf16"}
    assert formats["router"] == {"float32"}
    assert formats["linear"] == {"bf16", "float32"}  # q_proj stayed float32


def test_experts_of_mixed_dtypes_take_the_format_that_holds_all(checkpoint: Path) -> None:
    def one_half(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if ".experts.3." in name:
                tensors[name] = tensor.bfloat16()

    edit_tensors(checkpoint, one_half)
    assert formats_of(checkpoint, "native")["experts"] == {"float32"}


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    model, path = tiny_checkpoint("glm4_moe")
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ops = TorchOps()
    ids = random_ids(8, 512)
    logits = []
    for directory in (path, tmp_path):
        loaded = load_model(directory, ops, "float32")
        pages = PagedSequences(loaded.shape, 1, 8)
        logits.append(loaded.forward(ops, pages.batch([0], [ids]), pages.kv))
    assert torch.equal(*logits)


def test_progress_counts_bytes_up_to_all_of_them(checkpoint: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_model(checkpoint, TorchOps(), "float32", lambda done, total: calls.append((done, total)))
    tensors = load_file(checkpoint / "model.safetensors").values()
    stored = sum(tensor.nbytes for tensor in tensors)
    assert {total for _, total in calls} == {stored}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len(calls) == len(tensors) + 1
    assert calls[-1] == (stored, stored)


def test_unknown_architecture_lists_the_known_ones(checkpoint: Path) -> None:
    edit_config(checkpoint, model_type="bert")
    with pytest.raises(ValueError, match="one of glm4_moe, llama, mixtral, qwen3_moe; got 'bert'"):
        load_model(checkpoint, TorchOps(), "native")
    assert set(BUILDERS) == {"glm4_moe", "llama", "mixtral", "qwen3_moe"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "must be float32, .* 'fp8'",
        ),
        ({"sliding_window": 4096}, "sliding_window .* must be null .* got 4096"),
        ({"hidden_act": "gelu"}, "hidden_act .* must be \"silu\" .* got 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type .* got 'yarn'"),
        ({"rope_parameters": {"partial_rotary_factor": 1.5}}, r"even number in \[2, 32\]; got 48"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads; got 4 and 3"),
        ({"num_experts_per_tok": 9}, "not exceed the number of experts; got 9 of 8"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers .* whole number of at least 1; got '3'"),
        ({"vocab_size": 500}, r"embed_tokens.weight must have shape \(500, 128\); got \(512"),
        ({"num_local_experts": 9}, r"gate.weight must have shape \(9, 128\); got \(8, 128\)"),
        ({"num_hidden_layers": 4}, r"tensor model.layers.3.* must be in"),
    ],
)
def test_setting_that_cannot_be_honoured_is_refused(
    checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    edit_config(checkpoint, **settings)
    with pytest.raises(ValueError, match=rf"^\[checkpoint\] .*{message}"):
        load_model(checkpoint, TorchOps(), "native")


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.2.block_sparse_moe.experts.7.w2.weight",
        "model.layers.0.input_layernorm.weight",
        "lm_head.weight",
    ],
)
def test_missing_tensor_is_named(checkpoint: Path, name: str) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(ValueError, match=rf"^\[checkpoint\] tensor {name} must be in"):
        load_model(checkpoint, TorchOps(), "native")


def test_misshaped_expert_is_named(checkpoint: Path) -> None:
    name = "model.layers.1.block_sparse_moe.experts.5.w1.weight"
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(64, 127)}))
    with pytest.raises(ValueError, match=rf"{name} must have shape \(64, 128\); got \(64, 127\)"):
        load_model(checkpoint, TorchOps(), "native")


def test_unsupported_stored_dtype_is_refused(checkpoint: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    edit_tensors(checkpoint, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(ValueError, match=r"stored as one of float32, bf16, f16, .*; got float8"):
        load_model(checkpoint, TorchOps(), "native")


def test_tensor_that_no_block_reads_is_refused(checkpoint: Path) -> None:
    """An unread bias would be mathematics left out in silence."""
    name = "model.layers.1.self_attn.q_proj.bias"
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: torch.ones(128)}))
    with pytest.raises(ValueError, match=rf"known to the model; got 1 unknown ones: {name}"):
        load_model(checkpoint, TorchOps(), "native")


def test_tensors_beyond_the_forward_pass_are_skipped(checkpoint: Path) -> None:
    extra = {
        "model.layers.3.eh_proj.weight": torch.ones(4, 4),  # multi-token prediction
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    edit_tensors(checkpoint, lambda tensors: tensors.update(extra))
    assert load_model(checkpoint, TorchOps(), "native").shape.num_layers == 3
