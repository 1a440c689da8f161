# SPDX-License-Identifier: Apache-2.0
"""The names under which the runtime finds the builders."""

from importlib.metadata import entry_points

from kt_demo_model import BUILDERS


def test_both_models_are_discoverable() -> None:
    found = {point.name: point.load() for point in entry_points(group="kt.models")}
    assert BUILDERS.items() <= found.items()
