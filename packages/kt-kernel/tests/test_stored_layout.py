# SPDX-License-Identifier: Apache-2.0
"""The packed bytes: the same on every target, those of their version, and good for W^T dy too.

The transposed product is what ADR 0005 promises to fine-tuning: numpy here, step by step what a
kernel would do with its vectors.
"""

import zlib

import numpy as np
import pytest
import safetensors.numpy

from kt_kernel import Experts, _core
from kt_kernel.formats import FORMATS

from . import reference

# Of each format's bytes in `packed_bytes`. If one changes, raise kLayoutVersion: files outlive us.
CHECKSUMS = {
    5: {
        "float32": "5d97d876",
        "bf16": "8dd5e441",
        "f16": "f12f07d5",
        "fp8": "f2d8dca4",
        "int8": "eb9c48d7",
        "q8_0": "ae99114a",
        "q6_k": "3e991b9b",
        "q5_k": "75bfd30b",
        "q4_1": "bc90985b",
        "q4_k": "6a041629",
        "int4": "945a5020",
        "int4_zp": "11fba008",
        "q4_0": "7a1e2002",
        "mxfp4": "4cb749dc",
    },
}


def numbers(count: int) -> np.ndarray:
    """Uneven numbers in [0, 250], the same for ever (a random generator does not promise that)."""
    return np.arange(count, dtype=np.int64) * 37 % 251


def packed_bytes(format: str, n: int = 40, k: int = 512) -> np.ndarray:
    facts, values = FORMATS[format], {}
    if facts.takes_floats:
        weight = ((numbers(n * k) - 125) / 64).astype(np.float32).reshape(n, k)
    else:
        weight = numbers(n * k // facts.source_k * facts.source_bytes).astype(np.uint8)
        weight = np.where(weight == 127, 126, weight).reshape(n, -1)  # fp8: not a NaN
        if format == "fp8":
            values["scales"] = numbers(k // 128).astype(np.float32).reshape(1, -1)
    experts = Experts.empty(1, k, n, gate=None, up=format, down="float32")
    experts.put(0, "up", weight, **values)
    bundles, bundle_bytes = experts._core.bundles("up")
    return experts._core.packed[: bundles * bundle_bytes]


@pytest.mark.parametrize("format", FORMATS)
def test_packed_bytes_are_those_of_the_version_on_every_target(format, target):
    known = CHECKSUMS[_core.LAYOUT_VERSION]
    assert f"{zlib.crc32(packed_bytes(format)):08x}" == known[format]


@pytest.mark.parametrize(
    ("format", "k"),
    [(format, k) for format in FORMATS for k in (768, 2048, 7168)] + [("mxfp4", 2880)],
)
def test_a_bundle_is_one_stream_without_gaps(format, k):
    """32 rows lie together, so that one row of activations reads memory in order (ADR 0003)."""
    experts = Experts.empty(1, k, 33, gate=None, up=format, down="int4")
    bundle_bytes = FORMATS[format].bits_per_weight() * 32 * k / 8
    assert experts._core.bundles("up") == (2, -(-bundle_bytes // 64) * 64)


class Int4Bundles:
    """An int4 matrix with groups of 32 as it lies in a file: uint8 (bundles, bytes of a bundle)."""

    def __init__(self, bundles: np.ndarray, k: int):
        self.blocks = -(-k // 32)
        self.panels = 4 * len(bundles)
        # Of each block of 32 K the scales of 4 panels, then their weights.
        blocks = bundles.reshape(len(bundles), self.blocks, 4 * 16 + 4 * 128)
        self.header = blocks[:, :, : 4 * 16].reshape(len(bundles), self.blocks, 4, 16)
        self.data = blocks[:, :, 4 * 16 :].reshape(len(bundles), self.blocks, 4, 4, 8, 4)

    def scales(self, panel: int, block: int) -> np.ndarray:
        """One 16-byte load: the bf16 scales of 8 rows."""
        bits = self.header[panel // 4, block, panel % 4].copy().view(np.uint16)
        return reference.from_bf16(bits).astype(np.float64)

    def load(self, panel: int, block: int, j: int) -> np.ndarray:
        """One 32-byte load: of each row 4 K in the low nibbles, and 4 in the high ones."""
        return self.data[panel // 4, block, panel % 4, j]

    def values(self, panel: int, block: int) -> np.ndarray:
        """32 vectors, one for each of K; a lane is a row."""
        vectors = np.empty((32, 8))
        for j in range(4):
            loaded = self.load(panel, block, j)
            for byte in range(4):
                vectors[4 * j + byte] = loaded[:, byte] & 15
                vectors[4 * j + byte + 16] = loaded[:, byte] >> 4
        return vectors


def transposed_one(w: Int4Bundles, dy: np.ndarray) -> np.ndarray:
    """W^T dy of one row: a lane stays a row, and lanes are summed once at the end of a block."""
    dx = np.empty(32 * w.blocks)
    for block in range(w.blocks):
        sums, offset = np.zeros((32, 8)), np.zeros(8)
        for panel in range(w.panels):
            scaled = dy[8 * panel : 8 * (panel + 1)] * w.scales(panel, block)
            sums += w.values(panel, block) * scaled  # 32 multiply-adds
            offset += 8 * scaled
        dx[32 * block : 32 * (block + 1)] = (sums - offset).sum(axis=1)
    return dx


def transposed_many(w: Int4Bundles, dy: np.ndarray) -> np.ndarray:
    """W^T dy of many rows: four 8 x 8 transposes make a lane a K, then it is a plain product."""
    dx = np.zeros((len(dy), 32 * w.blocks))
    for panel in range(w.panels):
        for block in range(w.blocks):
            vectors = (w.values(panel, block) - 8) * w.scales(panel, block)
            rows = [vectors[k : k + 8].T for k in range(0, 32, 8)]  # 4 of [row][8 of K]
            for row in range(8):
                broadcast = dy[:, 8 * panel + row, None]
                for i, k in enumerate(range(32 * block, 32 * (block + 1), 8)):
                    dx[:, k : k + 8] += broadcast * rows[i][row]
    return dx


def test_the_backward_product_reads_the_same_bytes(tmp_path, rng):
    n, k = 51, 83
    q = rng.integers(0, 16, (n, k), np.uint8)
    scales = reference.from_bf16(reference.bf16_bits(rng.random((n, 3), np.float32)))
    experts = Experts.empty(1, k, n, gate=None, up="int4", down="float32")
    experts.put(0, "up", q, scales=scales)
    experts.put(0, "down", np.zeros((k, n), np.float32))
    experts.save(tmp_path / "experts.safetensors")
    stored = safetensors.numpy.load_file(tmp_path / "experts.safetensors")["experts.0.up"]

    weight = np.repeat(scales, 32, axis=1)[:, :k].astype(np.float64) * (q - 8.0)
    dy = rng.standard_normal((5, n))
    expected = dy @ weight
    w = Int4Bundles(stored, k)
    padded = np.zeros((5, 8 * w.panels))
    padded[:, :n] = dy
    many = transposed_many(w, padded)
    np.testing.assert_allclose(many[:, :k], expected, rtol=1e-10)
    assert np.all(many[:, k:] == 0)  # K's padding has weight 0
    for row, want in zip(padded, expected, strict=True):
        np.testing.assert_allclose(transposed_one(w, row)[:k], want, rtol=1e-10)
