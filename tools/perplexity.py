# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a model on the demo package's held-out text, per weight format: what quantising
costs.

Logits come through the whole engine (`LLM.logits`). Not a benchmark of speed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import numpy as np

from kt_demo_model import heldout_text
from kt_runtime import LLM
from kt_runtime.inspect import resolve_model
from kt_runtime.text.tokenizer import Tokenizer

FORMATS = ("float32", "bf16", "int8", "int4")


def main() -> int:
    """Print one row per format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smolmoe-exact")
    parser.add_argument("--formats", default=",".join(FORMATS))
    arguments = parser.parse_args()
    path = resolve_model(arguments.model)
    ids = Tokenizer.from_pretrained(path).encode(heldout_text())
    print(f"{arguments.model}, {len(ids)} held-out tokens")
    reference = None
    for weight_format in arguments.formats.split(","):
        with LLM(path, weight_format=weight_format) as llm:
            started = time.perf_counter()
            logits = llm.logits(ids)
            seconds = time.perf_counter() - started
        reference = logits if reference is None else reference
        error = float(np.abs(logits - reference).max())
        value = perplexity(logits, ids)
        row = f"{weight_format:8s} perplexity {value:8.3f}   max |logit - first| {error:8.4f}"
        print(f"  {row}   {len(ids) / seconds:6.0f} tokens/s")
    return 0


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    """exp of the mean negative log-likelihood of ids[1:]; logits: (len(ids), vocab)."""
    rows = logits[:-1].astype(np.float64)
    top = rows.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(rows - top).sum(axis=1))
    return math.exp(float(np.mean(log_sum - rows[np.arange(len(ids) - 1), ids[1:]])))


if __name__ == "__main__":
    sys.exit(main())
