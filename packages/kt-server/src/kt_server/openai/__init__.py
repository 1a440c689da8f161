# SPDX-License-Identifier: Apache-2.0
"""OpenAI's chat completions, completions and models: one file per endpoint, wire types in types."""
