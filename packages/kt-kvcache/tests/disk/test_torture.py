# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path


def test_a_hundred_times_two_killed_processes_leave_right_pages_only(tmp_path):
    script = Path(__file__).with_name("torture.py")
    command = [sys.executable, str(script), str(tmp_path), "--cycles", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 cycles" in done.stdout
    assert int(done.stdout.split("cycles, ")[1].split()[0]) >= 100
