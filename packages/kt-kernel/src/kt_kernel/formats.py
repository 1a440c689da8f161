# SPDX-License-Identifier: Apache-2.0
"""What is known about each weight format: size, arithmetic, layout, error. No packing code here.

The facts come from the format's own struct in the core, where its bytes are read and written. The
arithmetic (activation mode) belongs to the format, never to the machine, so that results do not
depend on the CPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kt_kernel import _core

__all__ = ("FORMATS", "WeightFormat")

_CHOSEN_GROUP = -1
_GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class WeightFormat:
    """One weight format.

    Attributes:
        name: what `format=` takes.
        activation_mode: how activations meet the weight: "f32" (as they are), "bf16" (rounded to
            bfloat16, summed in float32) or "int8_g32" (symmetric int8 per 32 of K, exact int32 dot
            products, float32 epilogue).
        value_bits: bits of one stored value, scales not counted.
        header_bits: bits that the weights of a group share: scales, minima, zero points.
        group: K that shares a header: 0 for none, otherwise fixed; -1 if `group_size=` chooses it.
        takes_floats: whether float weights can be packed; otherwise only the format's own bytes.
        source_k: already quantised weights come as `source_bytes` uint8 for every `source_k` of
            K; 0 if the format takes floats only.
        source_bytes: see `source_k`.
        layout: of a panel of 8 rows, the header of a group of K and the data of 32 of K (of
            float32, bf16 and f16 of 4). A packed (N, K) matrix, N and K padded to 32, is [N/32]
            bundles of 4 panels: for each group the headers of all four, then their data in turns of
            32 (4) of K.
        weight_error: RMS of the rounding error over the RMS of the weight, for normally distributed
            weights, the smallest group size and scales from the extremes of a group; a quantiser
            that searches for better scales gets less.
    """

    name: str
    activation_mode: str
    value_bits: float
    header_bits: float
    group: int
    takes_floats: bool
    source_k: int
    source_bytes: int
    layout: str
    weight_error: float

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """The values of `group_size=` besides 0, one group per row; empty if it is ignored."""
        return _GROUP_SIZES if self.group == _CHOSEN_GROUP else ()

    def bits_per_weight(self, group_size: int = 32) -> float:
        """Stored bits per weight, scales included, without the padding of a small matrix.

        Raises:
            ValueError: `group_size` chooses the groups and is not one of `group_sizes`.
        """
        if self.group == 0:
            return self.value_bits
        if self.group != _CHOSEN_GROUP:
            return self.value_bits + self.header_bits / self.group
        if group_size not in self.group_sizes:
            raise ValueError(
                f"[formats] group_size of {self.name} must be one of {self.group_sizes}; "
                f"got {group_size}"
            )
        return self.value_bits + self.header_bits / group_size


FORMATS: Mapping[str, WeightFormat] = MappingProxyType(
    {facts["name"]: WeightFormat(**facts) for facts in _core.formats()}
)
"""Every weight format by name, from the largest to the smallest."""
