# SPDX-License-Identifier: Apache-2.0
"""checkpoint.gguf_blocks: every bit pattern means what the library `gguf` says."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize as judge

from kt_runtime.checkpoint.formats import BLOCKS
from kt_runtime.checkpoint.gguf import TYPES
from kt_runtime.checkpoint.gguf_blocks import BLOCK_FORMATS, dequantize
from kt_runtime.protocols import QuantTensor

QUANTISED = {kind.format: (Type(n), kind) for n, kind in TYPES.items() if kind.elements > 1}
SCALES = {"q4_1": (0, 2), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}


def test_every_quantised_type_has_a_meaning() -> None:
    assert set(BLOCK_FORMATS) == set(QUANTISED) == set(BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("shape", [(3, 256), (1, 512), (700, 768)])  # one chunk, and several
def test_values_are_the_library_s(name: str, shape: tuple[int, int]) -> None:
    number, kind = QUANTISED[name]
    rng = np.random.default_rng(1)
    count = shape[0] * shape[1] // kind.elements
    blocks = rng.integers(0, 256, (count, kind.nbytes), dtype=np.uint8)
    for at in SCALES.get(name, (0,)):  # random bits would be NaN now and then
        halves = rng.standard_normal((count, 1)).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8)
    blocks = blocks.reshape(shape[0], -1)
    got = dequantize(QuantTensor(name, blocks, shape))
    np.testing.assert_array_equal(got.numpy(), judge(blocks, number))
