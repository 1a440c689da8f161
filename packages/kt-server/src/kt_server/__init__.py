# SPDX-License-Identifier: Apache-2.0
"""OpenAI-compatible HTTP server and the `kt` command. Tensors stay behind kt_runtime's Engine."""

__version__ = "0.1.0"
