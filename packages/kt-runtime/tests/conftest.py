# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests of this package: reproducible property tests, few enough to stay fast."""

from hypothesis import settings

settings.register_profile("kt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("kt")
