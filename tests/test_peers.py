# SPDX-License-Identifier: Apache-2.0
"""tools/peers: that ratios pair, that a peer which computes something else is refused, and, where
peers are built, that they compute our layer.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import child as child_module
import contention
import fetch
import kernels
import peer_llama_cpp
import roofline
from child import Child, Inputs, PeerError
from kt_kernel import formats
from registry import OURS, PEERS
from report import COLUMNS, Block, Limits, Row, line, write_json
from rounds import Ratio, alternate, check, paired_ratio
from shapes import FORMATS, Shape, sized
from weights import (
    SCALES,
    Expert,
    dequantize,
    moe_layer,
    random_blocks,
    read_weights,
    split_mxfp4,
    write_weights,
)

SHAPE = Shape("small", 8, 512, 256, 2, num_layers=2)

# Answers from a script: the rest of a command line says what to answer.
FAKE = """
import sys, time
for line in sys.stdin:
    command, *words = line.split()
    if command == "load":
        print("ready 4096 fake weights in a buffer", flush=True)
    elif words[0] == "error":
        print("error the layer is too wide", flush=True)
    elif words[0] == "end":
        break
    elif words[0] == "sleep":
        time.sleep(60)
    else:
        print("seconds 0.5 0.25", flush=True)
"""


@pytest.fixture
def fake():
    child = Child("fake", [sys.executable, "-c", FAKE])
    yield child
    child.close()


def test_a_child_reads_answers(fake: Child) -> None:
    fake.load(SHAPE, "Q4_0", Path("/weights"), max_tokens=4, num_threads=2)
    assert fake.bytes_per_expert == 4096
    assert fake.description == "fake weights in a buffer"
    assert fake.run(Path("inputs"), Path("output")) == [0.5, 0.25]


def test_a_child_is_stopped_while_nothing_is_asked(fake: Child) -> None:
    fake.run(Path("inputs"), Path("output"))
    deadline = time.monotonic() + 10  # a stop signal takes effect when the child next runs
    state = ""
    while state != "T" and time.monotonic() < deadline:
        state = Path(f"/proc/{fake.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state == "T"


@pytest.mark.parametrize(
    ("word", "message"),
    [("error", "fake: run: the layer is too wide"), ("end", "fake: run: it ended")],
)
def test_a_child_that_fails_is_an_error(fake: Child, word: str, message: str) -> None:
    with pytest.raises(PeerError, match=message):
        fake.run(Path(word), Path("output"))


def test_a_child_that_hangs_is_an_error(fake: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "RUN_SECONDS", 0.5)
    with pytest.raises(PeerError, match=r"no answer within 0\.5 s"):
        fake.run(Path("sleep"), Path("output"))


def test_a_child_dies_with_its_parent() -> None:
    script = f"""
import os, signal
from child import Child
child = Child("fake", [{sys.executable!r}, "-c", "input()"])
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(child_module.__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    stat = Path(f"/proc/{int(parent.stdout)}/stat")
    for _ in range(100):  # a zombie, until whoever adopted it has looked
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent")


def test_a_program_that_is_missing_is_an_error() -> None:
    with pytest.raises(PeerError, match=r"nobody: .*No such file"):
        Child("nobody", ["/nowhere/nobody"])


def test_inputs_survive_their_file_and_are_redrawn(tmp_path: Path) -> None:
    inputs = Inputs.draw(SHAPE, 5, 3, seed=1)
    inputs.write(tmp_path / "inputs")
    again = Inputs.read(tmp_path / "inputs")
    for name in ("hidden", "ids", "weights"):
        assert np.array_equal(getattr(inputs, name), getattr(again, name))
    assert inputs.ids.shape == (3, 5, SHAPE.top_k)
    assert not np.array_equal(inputs.ids[0], inputs.ids[1])
    assert all(len(set(ids)) == SHAPE.top_k for ids in inputs.ids.reshape(-1, SHAPE.top_k))
    assert np.allclose(inputs.weights.sum(-1), 1)
    assert not np.array_equal(inputs.ids, Inputs.draw(SHAPE, 5, 3, seed=2).ids)


def test_ratios_are_of_pairs() -> None:
    # The machine is three times slower in every other round: unpaired, that is a spread of nine.
    assert paired_ratio([2, 6, 2, 6], [1, 3, 1, 3]) == Ratio(2, 2, 2, 4)
    ratio = paired_ratio([1, 2, 3, 4, 5], [1, 1, 1, 1, 1])
    assert ratio == Ratio(3, 2, 4, 5)
    for lists in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="rounds must pair"):
            paired_ratio(*lists)


@pytest.mark.parametrize("blocks", ["F32", "F16", "BF16", "MXFP4", *SCALES])
def test_random_weights_keep_the_variance_of_activations(blocks: str) -> None:
    values = dequantize(random_blocks(blocks, 64, 512, np.random.default_rng(0)), blocks)
    assert values.shape == (64, 512)
    assert np.isfinite(values).all()
    bound = 1.9 if blocks == "MXFP4" else 1.2  # its scales are powers of two
    assert 1 / bound < values.std() * 512**0.5 < bound
    assert abs(values.mean()) < 0.2 * values.std()


def test_mxfp4_blocks_split_into_neighbours_and_exponents() -> None:
    blocks = random_blocks("MXFP4", 3, 64, np.random.default_rng(0))
    codes, exponents = split_mxfp4(blocks)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    unpacked = values[np.stack([codes & 15, codes >> 4], -1).reshape(3, 64)]
    scales = np.repeat(2.0 ** (exponents.astype(int) - 127), 32, axis=1)
    assert np.array_equal(unpacked * scales, dequantize(blocks, "MXFP4"))


def test_the_oracle_is_the_sum_over_slots(tmp_path: Path) -> None:
    weight_format = FORMATS["float32"]
    write_weights(tmp_path / "weights", SHAPE, weight_format)
    experts = read_weights(tmp_path / "weights", SHAPE, "F32")
    inputs = Inputs.draw(SHAPE, 2, 1, seed=0)
    actual = moe_layer(experts, "F32", inputs.hidden, inputs.ids[0], inputs.weights[0])
    for token, x in enumerate(inputs.hidden):
        expected = np.zeros(SHAPE.hidden_size)
        for number, scale in zip(inputs.ids[0][token], inputs.weights[0][token], strict=True):
            expert = experts[number % len(experts)]
            gate, up = (dequantize(w, "F32") @ x for w in (expert.gate, expert.up))
            inner = gate / (1 + np.exp(-gate)) * up
            expected += scale * (dequantize(expert.down, "F32") @ inner)
        assert np.allclose(actual[token], expected, rtol=1e-4, atol=1e-5)


def test_a_shape_is_beyond_the_caches_and_within_memory() -> None:
    shape, weight_format = Shape("s", 128, 2048, 768, 8), FORMATS["q4_0"]
    expert_bytes = shape.weights_per_expert * 4.5 / 8
    whole = sized(shape, weight_format, 2 << 30, 36 << 20)
    assert whole.num_experts == 128
    assert (whole.num_layers - 1) * 128 * expert_bytes < 360 << 20
    assert whole.num_layers * 128 * expert_bytes >= 360 << 20
    fewer = sized(shape, weight_format, int(50 * expert_bytes), 1 << 20)
    assert (fewer.num_experts, fewer.num_layers) == (48, 1)


class ScriptedChild:
    """In place of a process: the right answer, or `factor` times it, in scripted time."""

    def __init__(
        self, name: str, experts: list[Expert], seconds: float, log: list[str], factor: float = 1
    ) -> None:
        self.name, self.experts, self.seconds, self.factor = name, experts, seconds, factor
        self.log = log

    def run(self, inputs: Path, output: Path) -> list[float]:
        self.log.append(self.name)
        calls = Inputs.read(inputs)
        last = calls.hidden, calls.ids[-1], calls.weights[-1]
        (self.factor * moe_layer(self.experts, "F32", *last)).tofile(output)
        # The first call is slower: it must not count.
        return [10.0 if call == 0 else self.seconds for call in range(len(calls.ids))]


@pytest.fixture
def experts(tmp_path: Path) -> list[Expert]:
    write_weights(tmp_path / "weights", SHAPE, FORMATS["float32"])
    return read_weights(tmp_path / "weights", SHAPE, "F32")


def test_rounds_alternate_and_leave_out_the_waking_call(
    experts: list[Expert], tmp_path: Path
) -> None:
    log: list[str] = []
    children: Any = [ScriptedChild(name, experts, s, log) for name, s in (("a", 0.1), ("b", 0.3))]
    a, b = alternate(children, SHAPE, FORMATS["float32"], experts, 3, 4, tmp_path)
    assert log == ["a", "b", *"abbaabba"]  # one check each, then the rounds
    assert a.seconds == [0.1] * 4
    assert b.seconds == [0.3] * 4
    assert 2 <= a.experts_touched <= 6  # 3 tokens, top-2
    assert a.error < 1e-6


@pytest.mark.parametrize("factor", [0.9, float("nan")])
def test_a_peer_that_computes_something_else_is_refused(
    factor: float, experts: list[Expert], tmp_path: Path
) -> None:
    child: Any = ScriptedChild("wrong", experts, 0.1, [], factor)
    with pytest.raises(PeerError, match="wrong: is not the same layer"):
        check(child, FORMATS["float32"], experts, Inputs.draw(SHAPE, 2, 1, seed=0), tmp_path)


def rows() -> list[Row]:
    def row(peer: str, num_tokens: int, seconds: float, ratio: float) -> Row:
        operations = SHAPE.operations(num_tokens)
        weight_bytes = 1e6 * num_tokens**0.5
        times = [seconds] * 3
        spread = Ratio(ratio, ratio / 2, ratio * 2, 3)
        return Row(
            "int4", num_tokens, peer, "x", 2, times, weight_bytes, operations, spread, 0.01, 0.25
        )

    return [
        row(OURS, 1, 1e-4, 1),
        row("llama.cpp", 1, 2e-4, 2),
        row(OURS, 512, 1e-2, 1),
        row("llama.cpp", 512, 3e-2, 3),
    ]


def test_the_table_has_rates_and_ratios() -> None:
    ours, other, *_ = rows()
    assert ours.bandwidth == pytest.approx(10)  # 1 MB in 0.1 ms
    assert other.rate == pytest.approx(SHAPE.operations(1) / 2e-4 / 1e9)
    text = line(other)
    assert len(text) == len(COLUMNS)
    assert text.split() == [
        *("int4", "1", "llama.cpp", "x", "2", "0.200", f"{other.rate:.1f}", "5.00"),
        *("2.00", "1.00-4.00", "3", "1.0e-02", "25%"),
    ]


def test_results_are_written_with_every_round(tmp_path: Path) -> None:
    limits = Limits(30, 300, 150)
    write_json([Block(SHAPE, "avx2", limits, limits, rows())], tmp_path / "results.json")
    (block,) = json.loads((tmp_path / "results.json").read_text())
    assert block["shape"]["num_experts"] == SHAPE.num_experts
    assert block["before"]["read"] == 30
    assert [row["peer"] for row in block["rows"]] == [OURS, "llama.cpp"] * 2
    assert block["rows"][3]["seconds"] == [3e-2] * 3


def test_the_plot_shows_every_peer_and_both_ceilings(tmp_path: Path) -> None:
    blocks = [
        Block(SHAPE, "avx2", Limits(30, 300, 150), Limits(28, 280, 140), rows()) for _ in range(4)
    ]
    roofline.draw(blocks, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    panel = roofline.Figure().subplots()
    roofline.draw_block(panel, blocks[0])
    drawn = {curve.get_label(): curve.get_ydata() for curve in panel.get_lines()}
    assert list(drawn["llama.cpp x, 2 threads"]) == [row.rate for row in rows()[1::2]]
    assert sum(str(label).startswith("_") for label in drawn) == 2  # ceilings are not in the legend
    said = {text.get_text() for text in panel.texts}
    assert said == {"1", "512", "int8 maddubs+madd", "float32 FMA"}


def test_contention_counts_what_others_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(contention, "PROC", tmp_path)
    monkeypatch.setattr(contention.os, "getpid", lambda: 7)

    def write(stat: str, parent: int, child: int) -> None:
        (tmp_path / "stat").write_text(f"cpu  {stat}\ncpu0 1 2 3\n")
        for pid, ticks in ((7, parent), (8, child)):
            (tmp_path / str(pid)).mkdir(exist_ok=True)
            fields = ["S", *"1234567890", str(ticks), "5", "0", "0"]
            (tmp_path / str(pid) / "stat").write_text(f"{pid} (a (b) c) {' '.join(fields)}\n")

    # user nice system idle iowait irq softirq steal guest guest_nice
    write("100 0 0 1000 0 0 0 0 0 0", 10, 20)
    measured = contention.Contention([8])
    write("160 0 10 1110 5 0 0 15 30 0", 20, 50)
    assert measured.share() == pytest.approx((85 - 40) / 200)


def test_a_missing_build_says_how_to_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KT_HOME", str(tmp_path))
    for peer in ("llama.cpp", "reference"):
        with pytest.raises(PeerError, match=r"kernels\.py --build"):
            PEERS[peer].command(FORMATS["bf16"], "avx2")
    monkeypatch.setattr(peer_llama_cpp, "tool", lambda _: None)
    assert kernels.main(["--build", "--peers", "llama.cpp"]) == 1
    assert "needs cmake" in capsys.readouterr().err


def test_a_download_is_unpacked_once_and_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[tuple[object, ...]] = []

    def download(*command: object) -> None:
        ran.append(command)
        directory = Path(str(command[command.index("--dest") + 1]))
        directory.mkdir(parents=True)
        with tarfile.open(directory / "peer-1.tar.gz", "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("peer-1/empty"), io.BytesIO())

    monkeypatch.setattr(fetch, "run", download)
    for _ in range(2):
        fetch.fetch("peer==1", tmp_path / "peer", "--no-binary", "peer")
    assert len(ran) == 1
    assert "--no-deps" in ran[0]
    assert (tmp_path / "peer" / "peer-1" / "empty").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["peer"]


def test_a_failed_step_names_itself() -> None:
    with pytest.raises(PeerError, match=r"failed.*sys\.exit\(3\)"):
        fetch.run(sys.executable, "-c", "import sys; sys.exit(3)")


@pytest.mark.parametrize(
    "arguments", [["--formats", "int5"], ["--peers", "ollama"], ["--rounds", "0"]]
)
def test_a_bad_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        kernels.main(arguments)


def error_of(peer: str, name: str, tmp_path: Path) -> float:
    weight_format = FORMATS[name]
    write_weights(tmp_path / "weights", SHAPE, weight_format)
    experts = read_weights(tmp_path / "weights", SHAPE, weight_format.blocks)
    child = Child(peer, PEERS[peer].command(weight_format, "avx2"))
    try:
        child.load(SHAPE, weight_format.blocks, tmp_path / "weights", max_tokens=16, num_threads=2)
        assert child.bytes_per_expert >= SHAPE.weights_per_expert * 0.5
        inputs = Inputs.draw(SHAPE, 11, 2, seed=0)
        return max(
            check(child, weight_format, experts, inputs, tmp_path)[0],
            check(child, weight_format, experts, Inputs.draw(SHAPE, 1, 3, seed=1), tmp_path)[0],
        )
    finally:
        child.close()


@pytest.mark.parametrize("name", [name for name in FORMATS if name in formats.FORMATS])
def test_our_kernel_computes_the_layer(name: str, tmp_path: Path) -> None:
    assert error_of(OURS, name, tmp_path) <= FORMATS[name].max_error


def built(peer: str) -> bool:
    try:
        PEERS[peer].command(FORMATS["bf16"], "avx2")
    except PeerError:
        return False
    return True


@pytest.mark.skipif(not built("llama.cpp"), reason="llama.cpp is not built: kernels.py --build")
@pytest.mark.parametrize("name", [row.name for row in FORMATS.values() if row.llama_cpp])
def test_llama_cpp_computes_the_layer(name: str, tmp_path: Path) -> None:
    assert error_of("llama.cpp", name, tmp_path) <= 0.04


@pytest.mark.skipif(not built("reference"), reason="the reference is not there: kernels.py --build")
@pytest.mark.parametrize("name", [row.name for row in FORMATS.values() if row.reference])
def test_the_reference_computes_the_layer(name: str, tmp_path: Path) -> None:
    # Its fp8 is made from the values here: 3 bits of mantissa.
    assert error_of("reference", name, tmp_path) <= (0.06 if name == "fp8" else 0.04)
