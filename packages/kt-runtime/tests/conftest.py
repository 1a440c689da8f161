# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests of this package: reproducible property tests, few enough to stay fast."""

import torch
from hypothesis import settings

# Tiny matrices: a second intra-op thread costs more than it computes, forty times more on a busy
# machine, where it is waited for while it does not run.
torch.set_num_threads(1)

settings.register_profile("kt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("kt")
