# SPDX-License-Identifier: Apache-2.0
"""Traces of requests, and a store that replays them, to compare eviction policies; no timing."""
