# SPDX-License-Identifier: Apache-2.0
"""From scheduled sequences to sampled tokens: batch, runner, recorded graphs, sampler."""
