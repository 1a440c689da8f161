# SPDX-License-Identifier: Apache-2.0
"""Measures an OpenAI-compatible server as its clients see it. Knows no engine."""
