# SPDX-License-Identifier: Apache-2.0
"""What the command line lets one choose of. Imports nothing that takes time."""

from typing import Literal

Mode = Literal["latency", "throughput", "prefix", "concurrency"]
Endpoint = Literal["completions", "chat"]
