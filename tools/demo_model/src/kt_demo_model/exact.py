# SPDX-License-Identifier: Apache-2.0
"""`smolmoe-exact`: the dense model rewritten as a Mixtral that computes the same function.

Not sparse: all 8 experts of a layer run for every token. It is the demo whose answer is known.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kt_demo_model.dense import DenseModel

NUM_EXPERTS = 8  # 1536 = 8 x 192: a multiple of every weight-format group but a ragged GEMM tile


def exact_config(model: DenseModel) -> dict[str, Any]:
    """config.json in the form published Mixtral checkpoints have (`rope_theta` at top level)."""
    return model.config | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "dtype": "float32",
        "intermediate_size": model.config["intermediate_size"] // NUM_EXPERTS,
        "num_local_experts": NUM_EXPERTS,
        "num_experts_per_tok": NUM_EXPERTS,
        "router_aux_loss_coef": 0.0,
        "sliding_window": None,
    }


def exact_tensors(
    model: DenseModel, step: Callable[[], None]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the checkpoint's tensors in layer order, under the names published Mixtrals use.

    Float32, because a Q4_1 weight d*q + m needs more bits than bf16 has. A zero router gives every
    expert softmax weight 1/8 exactly, and down_proj x 8 (a power of two) is exact as well, so only
    the order of summation differs from the dense model.

    Args:
        model: The dense model.
        step: Called after each layer.
    """
    yield "model.embed_tokens.weight", model.tensors["model.embed_tokens.weight"]
    for layer in range(model.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, weight in model.tensors.items():
            if name.startswith(f"{prefix}.") and ".mlp." not in name:
                yield name, weight
        moe = f"{prefix}.block_sparse_moe"
        gate, up, down = (
            model.tensors[f"{prefix}.mlp.{kind}_proj.weight"] for kind in ("gate", "up", "down")
        )
        yield f"{moe}.gate.weight", np.zeros((NUM_EXPERTS, gate.shape[1]), np.float32)
        slices = zip(
            np.split(gate, NUM_EXPERTS),
            np.split(up, NUM_EXPERTS),
            np.split(down * NUM_EXPERTS, NUM_EXPERTS, axis=1),
            strict=True,
        )
        for expert, (w1, w3, w2) in enumerate(slices):
            yield f"{moe}.experts.{expert}.w1.weight", w1
            yield f"{moe}.experts.{expert}.w2.weight", np.ascontiguousarray(w2)
            yield f"{moe}.experts.{expert}.w3.weight", w3
        step()
    yield "model.norm.weight", model.tensors["model.norm.weight"]
