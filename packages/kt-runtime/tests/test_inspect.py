# SPDX-License-Identifier: Apache-2.0
"""Model names and the doctor's report."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from kt_runtime import inspect


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bool]:
    """One known model, `tiny`; the list grows by the `progress` of each build."""
    builds: list[bool] = []

    def build(progress: bool = True) -> Path:
        builds.append(progress)
        return tmp_path / "built"

    module = type(sys)("tiny_models_for_inspect")
    module.build = build
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = metadata.EntryPoint("tiny", f"{module.__name__}:build", inspect.MODEL_ENTRY_POINTS)
    monkeypatch.setattr(
        inspect.metadata,
        "entry_points",
        lambda group: [point] if group == inspect.MODEL_ENTRY_POINTS else [],
    )
    return builds


def test_a_directory_with_a_config_is_itself(tmp_path: Path, entry_points: list[bool]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert inspect.resolve_model(str(tmp_path)) == tmp_path
    assert entry_points == []


def test_a_gguf_file_is_itself(tmp_path: Path, entry_points: list[bool]) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert inspect.resolve_model(tmp_path / "model.gguf") == tmp_path / "model.gguf"
    assert entry_points == []


def test_a_known_name_is_built(tmp_path: Path, entry_points: list[bool]) -> None:
    assert inspect.known_models() == ["tiny"]
    assert inspect.resolve_model("tiny", progress=False) == tmp_path / "built"
    assert entry_points == [False]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("no-such-model", "'no-such-model', where nothing is"),
        ("empty", "a directory without config.json"),
        ("file", "a file that is not GGUF"),
        ("files", "name the file itself"),
    ],
)
@pytest.mark.usefixtures("entry_points")
def test_anything_else_lists_the_names_and_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"\[model\] model must be a directory .*\(tiny\)") as e:
        inspect.resolve_model(given)
    assert found in str(e.value)


def test_a_directory_goes_before_a_name_only_if_it_holds_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry_points: list[bool]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert inspect.resolve_model("tiny") == tmp_path / "built"
    (tmp_path / "tiny" / "config.json").write_text("{}")
    assert inspect.resolve_model("tiny") == Path("tiny")


def test_doctor_reports_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_HOME", str(tmp_path / "not" / "there"))
    report = inspect.doctor()
    assert report.target_active in report.targets_available
    assert report.num_threads is not None
    assert report.num_threads >= 1
    assert 0 < report.memory_available <= report.memory_total
    assert report.kt_home == tmp_path / "not" / "there"
    assert report.disk_free > 0
    assert report.versions["kt-runtime"] is not None
    assert report.versions["torch"] in report.torch_build
    assert report.cpu


def test_doctor_lists_models_built_and_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry_points: list[bool]
) -> None:
    monkeypatch.setenv("KT_HOME", str(tmp_path))
    mine = tmp_path / "models" / "mine"
    partial = tmp_path / "models" / ".partial"
    for directory in (mine, partial):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
    assert inspect.doctor().models == {"tiny": None, "mine": mine}
    assert entry_points == []


def test_doctor_says_what_to_do_about_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_THREADS", "many")
    (problem,) = [p for p in inspect.doctor().problems if "KT_THREADS" in p.what]
    assert "KT_THREADS" in problem.remedy


def test_doctor_reports_a_kernel_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kt_kernel", None)
    report = inspect.doctor()
    assert (report.targets_available, report.target_active) == ([], None)
    assert any("kt-kernel does not load" in p.what for p in report.problems)
