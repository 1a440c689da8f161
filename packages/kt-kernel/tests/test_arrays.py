# SPDX-License-Identifier: Apache-2.0
"""What counts as an array: accepted kinds share memory, others are refused with the reason."""

import ml_dtypes
import numpy as np
import pytest
import torch

from kt_kernel import Stream, ThreadPool
from kt_kernel.arrays import typed


class Foreign:
    """A DLPack producer that is neither numpy nor torch."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize(
    ("dtype", "name"), [(np.float32, "float32"), (np.float16, "f16"), (ml_dtypes.bfloat16, "bf16")]
)
def test_numpy_is_taken_without_a_copy(dtype, name):
    array = np.ones((2, 3), dtype)
    value, element = typed("op", "x", array)
    assert element == name
    assert np.shares_memory(value, array)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "float32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")],
)
def test_torch_is_taken_as_it_is(dtype, name):
    tensor = torch.ones(2, 3, dtype=dtype)
    value, element = typed("op", "x", tensor)
    assert element == name
    assert value is tensor


def test_any_dlpack_producer_is_taken_without_a_copy():
    array = np.ones((2, 3), np.float32)
    value, element = typed("op", "x", Foreign(array))
    assert element == "float32"
    assert np.shares_memory(value, array)


def test_bare_uint16_is_refused_until_its_meaning_is_said():
    bits = np.zeros((2, 3), np.uint16)
    with pytest.raises(ValueError, match=r'bits need dtype="bf16"\); got uint16 \(2, 3\)$'):
        typed("op", "x", bits)
    assert typed("op", "x", bits, "bf16")[1] == "bf16"
    assert typed("op", "x", torch.zeros(2, dtype=torch.uint16), "bf16")[1] == "bf16"


def test_the_declaration_reinterprets_nothing_else():
    assert typed("op", "x", np.zeros((2, 3), np.float32), "bf16")[1] == "float32"
    with pytest.raises(ValueError, match="got int16"):
        typed("op", "x", np.zeros((2, 3), np.int16), "bf16")
    with pytest.raises(ValueError, match=r"^\[op\] dtype must be one of .*; got 'int7'$"):
        typed("op", "x", np.zeros((2, 3), np.uint16), "int7")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.ones((2, 3)), r"got float64 \(2, 3\)$"),
        (np.ones((2, 3), np.int64), r"got int64 \(2, 3\)$"),
        (torch.ones(2, 3, dtype=torch.float64), r"got float64 \(2, 3\)$"),
        ([[1.0, 2.0]], "got list$"),
        (None, "got NoneType$"),
    ],
)
def test_other_types_are_refused_with_rule_and_actual(value, got):
    rule = r"^\[op\] x must be an array of float32, bf16, f16"
    with pytest.raises(ValueError, match=rule) as error:
        typed("op", "x", value)
    assert error.match(got)


@pytest.mark.parametrize(
    "weight",
    [
        np.ones((3, 8), np.float32),
        np.ones((3, 8), np.float16),
        np.ones((3, 8), ml_dtypes.bfloat16),
        torch.ones(3, 8),
        torch.ones(3, 8, dtype=torch.float16),
        torch.ones(3, 8, dtype=torch.bfloat16),
        Foreign(np.ones((3, 8), np.float32)),
    ],
    ids=lambda weight: f"{type(weight).__name__}-{getattr(weight, 'dtype', '')}",
)
@pytest.mark.parametrize("library", ["numpy", "torch", "foreign"])
def test_every_kind_of_array_works_in_an_op(weight, library, pool: ThreadPool):
    ids, out = np.array([2, 0], np.int32), np.zeros((2, 8), np.float32)
    wrap = {"numpy": lambda x: x, "torch": torch.from_numpy, "foreign": Foreign}[library]
    Stream(pool).embedding(wrap(ids), weight, wrap(out))
    assert (out == 1).all()


def test_read_only_memory_is_an_input_but_no_output(pool: ThreadPool):
    x, out = np.ones((2, 8), np.float32), np.zeros((2, 8), np.float32)
    x.flags.writeable = False
    Stream(pool).add(x, x, out)
    assert (out == 2).all()
    with pytest.raises(ValueError, match=r"^\[add\] out must be writable .*read-only"):
        Stream(pool).add(out, out, x)
    assert (x == 1).all()


@pytest.mark.parametrize(
    "bad",
    [
        np.ones((2, 8)),
        np.ones((8, 2), np.float32).T,
        np.ones((2, 8), ">f4"),
        np.ones((2, 16), np.float32)[:, ::2],
        np.ones((2, 8), ml_dtypes.bfloat16),
        np.frombuffer(bytes(65), np.float32, 16, offset=1).reshape(2, 8),
        torch.ones(8, 2).T,
        torch.ones(2, 8, device="meta"),
        [[1.0] * 8] * 2,
        None,
        "text",
    ],
    ids=repr,
)
def test_what_would_need_a_copy_is_refused(bad, pool: ThreadPool):
    good, out = np.ones((2, 8), np.float32), np.zeros((2, 8), np.float32)
    with pytest.raises(ValueError, match=r"^\[add\] x must be C-contiguous float32 .*; got "):
        Stream(pool).add(bad, good, out)
    assert not out.any()


def test_empty_and_single_rows_count_as_contiguous(pool: ThreadPool):
    x = np.ones((4, 8), np.float32)
    out = np.zeros((1, 8), np.float32)
    Stream(pool).add(x[::4], x[::4], out)
    assert (out == 2).all()
    Stream(pool).add(x[:0], x[:0], out[:0])
