# SPDX-License-Identifier: Apache-2.0
"""The two committed texts: one to fit routers on, a different one to measure perplexity on."""

from importlib.resources import files


def calibration_text() -> str:
    """Text that `smolmoe-sparse` is fitted on; its documents are separated by a line `%%`."""
    return files(__name__).joinpath("calibration.txt").read_text(encoding="utf-8")


def heldout_text() -> str:
    """The project's named held-out text for perplexity: never used in fitting anything."""
    return files(__name__).joinpath("heldout.txt").read_text(encoding="utf-8")
