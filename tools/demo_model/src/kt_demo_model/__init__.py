# SPDX-License-Identifier: Apache-2.0
"""Demo checkpoints `smolmoe-exact` and `smolmoe-sparse`: built on first use, then found on disk.

Not part of the four packages and importing none of them: what is built here is material for them.
"""

from kt_demo_model.builders import BUILDERS, build_exact, build_sparse
from kt_demo_model.texts import calibration_text, heldout_text

__all__ = ("BUILDERS", "build_exact", "build_sparse", "calibration_text", "heldout_text")
