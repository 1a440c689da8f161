# SPDX-License-Identifier: Apache-2.0
"""Which file builds which model_type, and loading by directory. To add a model: its file, and one
line here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from kt_runtime.checkpoint.checkpoint import Checkpoint, open_checkpoint
from kt_runtime.checkpoint.model_dir import ModelConfig
from kt_runtime.config import WeightFormat
from kt_runtime.models import glm4_moe, llama, mixtral, qwen3_moe
from kt_runtime.models.blocks import Decoder
from kt_runtime.models.weights import Progress, WeightReader
from kt_runtime.protocols import CausalLM, Packer

BUILDERS: dict[str, Callable[[ModelConfig, WeightReader], Decoder]] = {
    "glm4_moe": glm4_moe.build,
    "llama": llama.build,
    "mixtral": mixtral.build,
    "qwen3_moe": qwen3_moe.build,
}


def load_model(
    path: str | Path | Checkpoint,
    packer: Packer,
    weight_format: WeightFormat,
    progress: Progress | None = None,
) -> CausalLM:
    """Loads a Hugging Face directory or a GGUF file into packed weights.

    Tensors go one by one from the mapped files into their packed form: peak memory is the packed
    model plus one matrix per packing thread.

    Args:
        path: the directory or file, or what open_checkpoint made of it.
        packer: packs the weights, which Ops of its kind run.
        weight_format: see checkpoint.formats.
        progress: called with (bytes read, bytes in all) after each tensor; the last call has both
            equal.

    Raises:
        ValueError: `[checkpoint] …` for an unknown architecture, an unsupported setting, a
            quantised checkpoint, and missing, truncated, misshaped or unknown tensors.
    """
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    config = checkpoint.config
    build = BUILDERS.get(checkpoint.model_type)
    if build is None:
        raise ValueError(
            f"[checkpoint] model_type must be one of {', '.join(sorted(BUILDERS))}; "
            f"got {checkpoint.model_type!r}"
        )
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise ValueError(
            f"[checkpoint] weights in safetensors must be float32, bfloat16 or float16 "
            f"(weight_format packs them); got quantization_config with quant_method {method!r}"
        )
    weights = WeightReader(checkpoint.open_tensors(), packer, weight_format, progress)
    model = build(config, weights)
    weights.finish(ignore=lambda name: _is_no_weight(name, config, model.shape.num_layers))
    return model


def _is_no_weight(name: str, config: ModelConfig, num_layers: int) -> bool:
    """Stored tensors that a forward pass does not need: rotary tables of old checkpoints, the
    second copy of a tied head, and layers after the last one (multi-token prediction)."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    if name == "lm_head.weight":
        return config.flag("tie_word_embeddings", default=False)
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return layer is not None and int(layer.group(1)) >= num_layers
