# SPDX-License-Identifier: Apache-2.0
"""`kt bench` on a real model that it serves itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KT = Path(sys.executable).with_name("kt")


@pytest.mark.e2e
def test_a_model_is_served_measured_and_stopped(tmp_path: Path, model_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [KT, "bench", "prefix", str(model_path), "--json", file, "--requests", "3"]
    command += ["--input-tokens", "64", "--output-tokens", "6", "--serve-args", "--num-threads 1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernel target" in done.stdout
    report = json.loads(file.read_text())
    cold, warm = report["results"]
    assert (cold["num_failed"], warm["num_failed"]) == (0, 0)
    assert (cold["cached_tokens"], warm["output_tokens"]) == (0, 12)
    assert warm["cached_tokens"] >= 2 * 32
    assert abs(cold["prompt_tokens"] - 64) <= 16
    assert warm["decode"]["steps"] == 10
    assert 0 < warm["decode"]["forward_s"] < warm["decode"]["step_s"]
