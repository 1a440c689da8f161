# SPDX-License-Identifier: Apache-2.0
"""What is known about each weight format: size, arithmetic, layout, error. No packing code here.

The arithmetic (activation mode) belongs to the format, never to the machine, so that results do not
depend on the CPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kt_kernel import _core

__all__ = ("FORMATS", "WeightFormat")

_GROUP_SIZES = (32, 64, 128)
_SCALE_BITS = 16  # one bfloat16 scale per group


@dataclass(frozen=True)
class WeightFormat:
    """One weight format.

    Attributes:
        name: what `format=` takes.
        value_bits: bits of one stored value, scales not counted.
        group_sizes: allowed sizes of a group of K that shares a scale; empty for the float formats.
        activation_mode: how activations meet the weight: "f32" (as they are), "bf16" (rounded to
            bfloat16, summed in float32) or "int8_g32" (symmetric int8 per 32 of K, exact int32 dot
            products, float32 epilogue).
        layout: storage of an (N, K) matrix; N padded to 8, K padded to 32 with zeros.
        weight_error: RMS of the rounding error over the RMS of the weight, for normally distributed
            weights and the smallest group size.
    """

    name: str
    value_bits: int
    group_sizes: tuple[int, ...]
    activation_mode: str
    layout: str
    weight_error: float

    def bits_per_weight(self, group_size: int = 32) -> float:
        """Stored bits per weight, scales included.

        Raises:
            ValueError: the format has groups and `group_size` is not one of `group_sizes`.
        """
        if not self.group_sizes:
            return float(self.value_bits)
        if group_size not in self.group_sizes:
            raise ValueError(
                f"[formats] group_size of {self.name} must be one of {self.group_sizes}; "
                f"got {group_size}"
            )
        return self.value_bits + _SCALE_BITS / group_size


def _formats() -> dict[str, WeightFormat]:
    # weight_error: bf16 rounds by at most 2^-8, by 2^-8 / sqrt(3) RMS at the bottom of a binade, by
    # 0.7 of that on average; the integer formats have a step of absmax / 127 or absmax / 7, where
    # the largest of 32 normal values is 2.3 sigma in RMS, and an error of step / sqrt(12).
    rows = (
        ("float32", 32, (), "float32 data[N/8][K][8]", 0.0),
        ("bf16", 16, (), "bfloat16 data[N/8][K/2][8][2]", 0.0017),
        (
            "int8",
            8,
            _GROUP_SIZES,
            "int8 data[N/8][K/4][8][4], bfloat16 scales[N/8][K/group][8]; value = scale * q",
            0.0054,
        ),
        (
            "int4",
            4,
            _GROUP_SIZES,
            "uint8 data[N/8][K/32][4][8][4], two values per byte, 16 of K apart, "
            "bfloat16 scales[N/8][K/group][8]; value = scale * (q - 8)",
            0.098,
        ),
    )
    return {
        name: WeightFormat(name, bits, groups, _core.default_act_mode(name), layout, error)
        for name, bits, groups, layout, error in rows
    }


FORMATS: Mapping[str, WeightFormat] = MappingProxyType(_formats())
"""Every weight format by name, from the largest to the smallest."""
