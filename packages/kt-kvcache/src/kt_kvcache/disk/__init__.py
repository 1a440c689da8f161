# SPDX-License-Identifier: Apache-2.0
"""Pages on disk: segments of fixed slots below the tier in memory. Nothing outside imports more
than ``DiskTier`` and ``inspect``.
"""
