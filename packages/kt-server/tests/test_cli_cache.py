# SPDX-License-Identifier: Apache-2.0
"""`kt cache` on a directory that a store wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kt_kvcache import Arena, Geometry, Group, Identity, KVStore, StoreConfig
from kt_server.cli.commands import app, run_app

GEOMETRY = Geometry(page_tokens=4, groups=(Group("kv", 1, 8192),))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six pages of one tenant, two of another."""
    config = StoreConfig(num_pages=32, page_tokens=4, disk_bytes=8 << 20, min_free_bytes=0)
    arena = Arena([np.ones((32, 8192), np.uint8)])
    with KVStore.open(tmp_path / "kv", config=config, arena=arena) as store:
        for tenant, num_pages in (("a", 6), ("b", 2)):
            space = store.space(Identity(weights="w", kv_format="u8"), GEOMETRY, tenant)
            chain = space.chain(list(range(4 * num_pages)))
            with space.reserve(chain, 0, num_pages) as writer:
                writer.commit(num_pages, after=None)
    return tmp_path / "kv"


def kt(*arguments: str | Path, status: int = 0) -> list[str]:
    result = CliRunner().invoke(app, ["cache", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout.splitlines()


def test_stats_and_ls(root: Path) -> None:
    rows = dict(line.split(None, 1) for line in kt("stats", root))
    assert "8 pages of at most" in rows["in"]
    assert (rows["namespaces"], rows["segments"]) == ("2", "1")
    assert rows["written"] == "0.000 GB in the last 24 hours"
    _, *spaces = kt("ls", root)
    assert sorted(int(line.split()[1]) for line in spaces) == [8, 24]


def test_drop_takes_one_namespace_by_its_first_digits_or_all(root: Path) -> None:
    key = next(line.split()[0] for line in kt("ls", root)[1:] if line.split()[1] == "24")
    with pytest.raises(ValueError, match=r"exactly one; got 'xyz', which 0 begin with"):
        kt("drop", root, "xyz")
    for wrong in ([], [key, "--all"]):
        with pytest.raises(ValueError, match="drop needs a namespace or --all"):
            kt("drop", root, *wrong)
    assert kt("drop", root, key[:12]) == ["dropped 6 pages"]
    assert kt("drop", root, "--all") == ["dropped 2 pages"]
    assert len(kt("ls", root)) == 1


def test_verify_finds_what_scrub_drops(root: Path) -> None:
    assert kt("verify", root) == ["8 pages, 0.000 GB: 0 damaged"]
    (slots,) = root.glob("*.kvs")
    with slots.open("r+b") as opened:
        opened.write(b"\0\0\0\0")
    assert kt("verify", root, status=1)[0] == "8 pages, 0.000 GB: 1 damaged"
    assert kt("scrub", root) == ["8 pages, 0.000 GB: 1 dropped"]
    assert kt("verify", root) == ["7 pages, 0.000 GB: 0 damaged"]


@pytest.mark.parametrize("name", ["empty", "other", "file", "nowhere"])
@pytest.mark.parametrize(
    "command", [["stats"], ["ls"], ["drop", "--all"], ["drop", "ab"], ["verify"], ["scrub"]]
)
def test_what_is_no_store_is_said_in_one_line_and_left_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    name: str,
) -> None:
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "other").mkdir(mode=0o700)
    for file in ("other/notes", "file"):
        (tmp_path / file).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    verb, *rest = command
    monkeypatch.setattr("sys.argv", ["kt", "cache", verb, str(tmp_path / name), *rest])
    with pytest.raises(SystemExit) as ended:
        run_app()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("kt: [kvstore.inspect] root must be a directory")
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
