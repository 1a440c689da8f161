# SPDX-License-Identifier: Apache-2.0
"""`--config FILE`: whose value counts, what the reference's names become, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from kt_server.cli.commands import app
from kt_server.cli.config_file import ConfigOption, read


def command(
    model: str,
    config: ConfigOption = None,
    kv_page_size: int = 16,
    kv_cpu_memory_gb: float = 1.0,
    kv_disk_path: str | None = None,
    debug_numerics: Annotated[bool, typer.Option("--debug-numerics")] = False,
) -> None:
    got = [model, kv_page_size, kv_cpu_memory_gb, kv_disk_path, debug_numerics]
    print(json.dumps(got))


def run(*arguments: str | Path) -> list:
    one = typer.Typer()
    one.command()(command)
    result = CliRunner().invoke(one, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def file(tmp_path: Path, text: str, name: str = "kt.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kt.yaml", "kv_page_size: 32\nkv-disk-path: /kv\ndebug_numerics: true\nmodel: m\n"),
        (
            "kt.json",
            '{"kv_page_size": 32, "kv_disk_path": "/kv", "debug_numerics": true, "model": "m"}',
        ),
        (
            "kt.toml",
            'kv_page_size = 32\nkv_disk_path = "/kv"\ndebug_numerics = true\nmodel = "m"\n',
        ),
    ],
)
def test_every_syntax_sets_options(tmp_path: Path, name: str, text: str) -> None:
    assert run("--config", file(tmp_path, text, name)) == ["m", 32, 1.0, "/kv", True]


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = file(tmp_path, "kv_page_size: 32\nkv_cpu_memory_gb: 2\nkv_disk_path: null\n")
    assert run("m", "--kv-page-size", "8", "--config", path) == ["m", 8, 2.0, None, False]


def test_the_references_names_are_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nested = """
attn: {page_size: 256, chunk_size: 256}
kvc2: {gpu_only: false, utilization_percentage: 1.0, cpu_memory_size_GB: 500, disk_path: /mnt/kvc}
"""
    expected = {"kv_page_size": "256", "kv_cpu_memory_gb": "500", "kv_disk_path": "/mnt/kvc"}
    assert read(file(tmp_path, nested)) == expected
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in said] == [
        "kt: [config] attn.chunk_size",
        "kt: [config] kvc2.utilization_percentage",
    ]
    assert all("is ignored: " in line for line in said)
    assert read(file(tmp_path, "kvc2.disk_path: /a\n")) == {"kv_disk_path": "/a"}


def test_gpu_only_keeps_pages_off_the_disk(tmp_path, capsys) -> None:
    path = file(tmp_path, "kvc2:\n  gpu_only: true\n  disk_path: /mnt/kvc\n")
    assert read(path) == {}
    assert "kvc2.disk_path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kv_page_sizes: 3", r"keys must be options of kt serve; got kv_page_sizes in"),
        ("kvc2: {disk: /x}", r"keys must be options of kt serve; got kvc2.disk in"),
        ("config: other.yaml", r"got config in"),
        ("kv_page_size: [1]", r"kv_page_size must be text, a number or a boolean; got \[1\]"),
        ("kv_page_size: 1\nattn: {page_size: 2}", r"kv_page_size must be set once"),
        ("kvc2: {disk_path: a}\nkvc2.disk_path: b", r"kvc2.disk_path must be set once"),
        ("- a", r"must hold keys and values; got \['a'\]"),
        ("a: [", r"kt.yaml must be YAML, JSON or TOML; got"),
        ("!!python/object/apply:os.system [true]", r"must be YAML, JSON or TOML"),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    arguments = ["serve", "x", "--config", str(file(tmp_path, text))]
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize("value", ["abc", "3.5"])
def test_a_value_of_the_wrong_kind_names_its_option(tmp_path: Path, value: str) -> None:
    path = file(tmp_path, f"kv_page_size: {value}")
    result = CliRunner().invoke(app, ["serve", "x", "--config", str(path)])
    assert result.exit_code == 2
    assert "Invalid value for '--kv-page-size'" in result.output
