# SPDX-License-Identifier: Apache-2.0
"""Publishing directories: once, whole, and again when the recipe changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from kt_demo_model.home import kt_home, published_directory

RECIPE = {"version": "1"}


def write_weights(directory: Path) -> None:
    (directory / "weights").write_text("12345678")


def refuse(directory: Path) -> None:
    pytest.fail(f"built again in {directory}")


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KT_HOME", str(tmp_path))
    assert kt_home() == tmp_path
    monkeypatch.delenv("KT_HOME")
    assert kt_home() == Path.home() / ".cache" / "kt"


def test_builds_once(tmp_path: Path) -> None:
    target = tmp_path / "models" / "m"
    assert published_directory(target, RECIPE, write_weights) == target
    assert published_directory(target, RECIPE, refuse) == target
    assert (target / "weights").read_text() == "12345678"


def test_another_recipe_rebuilds(tmp_path: Path) -> None:
    target = published_directory(tmp_path / "m", RECIPE, write_weights)
    published_directory(target, {"version": "2"}, lambda new: (new / "other").touch() or None)
    assert {file.name for file in target.iterdir()} == {"other", "kt_manifest.json"}


@pytest.mark.parametrize("name", ["weights", "kt_manifest.json"])
def test_truncated_or_missing_file_rebuilds(tmp_path: Path, name: str) -> None:
    target = published_directory(tmp_path / "m", RECIPE, write_weights)
    (target / name).write_text("123")
    published_directory(target, RECIPE, write_weights)
    (target / name).unlink()
    published_directory(target, RECIPE, write_weights)
    published_directory(target, RECIPE, refuse)
    assert (target / "weights").read_text() == "12345678"


def test_failed_build_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        write_weights(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        published_directory(tmp_path / "m", RECIPE, fail)
    assert [file.name for file in tmp_path.iterdir()] == [".m.lock"]
    target = published_directory(tmp_path / "m", RECIPE, write_weights)
    with pytest.raises(OSError, match="disk full"):
        published_directory(target, {"version": "2"}, fail)
    published_directory(target, RECIPE, refuse)


PROCESS = """
import sys, time
from pathlib import Path
from kt_demo_model.home import published_directory
def build(directory):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(0.3)
    (directory / "weights").write_text("12345678")
target = published_directory(Path(sys.argv[1]), {"version": "1"}, build)
assert (target / "weights").read_text() == "12345678"
"""


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "m"), str(tmp_path / "log")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
