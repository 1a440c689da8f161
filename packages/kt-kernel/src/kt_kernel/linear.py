# SPDX-License-Identifier: Apache-2.0
"""One packed matrix of a dense layer. Storage only: `Stream.linear` and `Graph.linear` compute."""

from kt_kernel import _core
from kt_kernel.scalars import int32
from kt_kernel.source import source_of
from kt_kernel.thread_pool import ThreadPool

__all__ = ("Linear",)


class Linear:
    """A packed weight (out_features, in_features) with an optional bias. Immutable."""

    def __init__(self, core: _core.Linear) -> None:
        self._core = core

    @classmethod
    def pack(
        cls,
        weight: object,
        *,
        format: str = "int4",
        group_size: int = 32,
        scales: object | None = None,
        zeros: object | None = None,
        bias: object | None = None,
        pool: ThreadPool | None = None,
        dtype: str | None = None,
    ) -> "Linear":
        """Pack a matrix.

        Args:
            weight: (out_features, in_features) float32, bf16 or f16; or already quantised bytes,
                as `Experts.put` takes them.
            format: weight format, a key of `formats.FORMATS`.
            group_size: weights along K that share a scale: 32, 64 or 128, or 0 for one scale per
                row. Formats with a group of their own, or none, ignore it.
            scales: of quantised weights, as `Experts.put` takes them.
            zeros: of quantised weights, as `Experts.put` takes them.
            bias: (out_features,) float32, or None.
            pool: packs with these threads; None packs on the calling thread.
            dtype: "bf16" if `weight` is bare uint16 bits.

        Raises:
            ValueError: wrong dtype, layout or shape, an unknown format or group size.
        """
        source = source_of("linear.pack", weight, scales, zeros, dtype)
        core_pool = pool._core if pool is not None else None
        groups = int32("linear.pack", "group_size", group_size)
        return cls(_core.Linear(*source, format, groups, bias, core_pool))

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self._core.out_features

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self._core.in_features

    @property
    def format(self) -> str:
        """Weight format, a key of `formats.FORMATS`."""
        return self._core.format

    @property
    def group_size(self) -> int:
        """Weights along K that share a header; 0 if there is none."""
        return self._core.group_size

    @property
    def nbytes(self) -> int:
        """Bytes of packed storage."""
        return self._core.nbytes
