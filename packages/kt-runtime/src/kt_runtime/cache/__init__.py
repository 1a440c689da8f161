# SPDX-License-Identifier: Apache-2.0
"""KV pages: their tensors, their ids per sequence, and the tie to the prefix store."""
