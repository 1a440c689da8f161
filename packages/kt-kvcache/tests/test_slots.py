# SPDX-License-Identifier: Apache-2.0
import pytest

from kt_kvcache.errors import IntegrityError
from kt_kvcache.slots import Slots


def test_slots_are_taken_once_and_come_back():
    slots = Slots(4)
    assert slots.take(3) == [0, 1, 2]
    assert (slots.num_free, slots.free_ids()) == (1, {3})
    slots.give([1])
    assert slots.free_ids() == {1, 3}
    assert sorted(slots.take(2)) == [1, 3]
    assert slots.num_free == 0


def test_a_double_free_is_caught():
    slots = Slots(2)
    slots.take(1)
    slots.give([0])
    with pytest.raises(IntegrityError, match="page 0 must be in use; got free"):
        slots.give([0])


def test_taking_more_than_is_free_is_caught():
    slots = Slots(2)
    with pytest.raises(IntegrityError, match="3 slots must be free; got 2"):
        slots.take(3)
    assert slots.num_free == 2
