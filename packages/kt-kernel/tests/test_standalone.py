# SPDX-License-Identifier: Apache-2.0
"""The package alone, built from source into an empty environment: numpy and nothing heavier."""

import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_installs_into_an_empty_environment_and_computes(tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    build = f"build-dir={tmp_path / 'build'}"  # a fresh one: nothing of this checkout is reused
    subprocess.run([python, "-m", "pip", "install", "-q", "-C", build, PACKAGE], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    installed = {line.split("==")[0].lower() for line in listed.stdout.split()}
    assert installed <= {"kt-kernel", "numpy", "safetensors", "pip", "setuptools", "wheel"}
    check = subprocess.run(
        [python, "-m", "kt_kernel", "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert check.returncode == 0, check.stdout + check.stderr
    assert re.search(r"^moe +int4 +avx2 .* ok$|^moe +int4 +scalar .* ok$", check.stdout, re.M)
    assert sys.executable != str(python)
