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
from figures import AIMS, DECODE_LLAMA, DECODE_PROBE, Aim, Figure, figures_of
from kt_kernel import ThreadPool, formats
from packing import pack_rates
from registry import OURS, PEERS
from report import figure_line, markdown, measurement, write_json
from results import Batch, Block, Limits, Row
from rounds import Ratio, alternate, check, check_inputs, paired_ratio, spread
from shapes import DEFAULT_FORMATS, FORMATS, SHAPES, Shape, max_error, sized
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
BIASED = Shape("biased", 8, 512, 256, 2, activation="swigluoai", biases=True)

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


@pytest.mark.parametrize("shape", [SHAPE, BIASED])
def test_the_oracle_is_the_sum_over_slots(shape: Shape, tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", shape, "F32")
    experts = read_weights(tmp_path / "weights", shape, "F32")
    inputs = Inputs.draw(shape, 2, 1, seed=0)
    call = inputs.hidden, inputs.ids[0], inputs.weights[0]
    actual = moe_layer(experts, "F32", shape.activation, *call)
    clamped = 0
    for token, x in enumerate(inputs.hidden):
        expected = np.zeros(SHAPE.hidden_size)
        for number, scale in zip(inputs.ids[0][token], inputs.weights[0][token], strict=True):
            expert = experts[number % len(experts)]
            gate, up = (
                dequantize(weight, "F32") @ x + bias
                for weight, bias in zip((expert.gate, expert.up), expert.biases, strict=False)
            )
            if shape.biases:
                clamped += np.count_nonzero(gate > 7) + np.count_nonzero(np.abs(up) > 7)
                gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
            inner = gate / (1 + np.exp(-(1.702 if shape.biases else 1) * gate)) * up
            expected += scale * (dequantize(expert.down, "F32") @ inner + expert.biases[2])
        assert np.allclose(actual[token], expected, rtol=1e-4, atol=1e-5)
    assert (clamped > 0) == shape.biases  # otherwise a peer without the clamp would pass


def test_a_shape_is_beyond_the_caches_and_within_memory() -> None:
    shape = Shape("s", 128, 2048, 768, 8)
    expert_bytes = shape.weights_per_expert * 4.5 / 8
    whole = sized(shape, 4.5, 2 << 30, 36 << 20)
    assert whole.num_experts == 128
    assert (whole.num_layers - 1) * 128 * expert_bytes < 360 << 20
    assert whole.num_layers * 128 * expert_bytes >= 360 << 20
    fewer = sized(shape, 4.5, 50 * expert_bytes, 1 << 20)
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
        (self.factor * moe_layer(self.experts, "F32", "silu", *last)).tofile(output)
        # The first call is slower: it must not count.
        return [10.0 if call == 0 else self.seconds for call in range(len(calls.ids))]


@pytest.fixture
def experts(tmp_path: Path) -> list[Expert]:
    write_weights(tmp_path / "weights", SHAPE, "F32")
    return read_weights(tmp_path / "weights", SHAPE, "F32")


def test_rounds_alternate_and_leave_out_the_waking_call(
    experts: list[Expert], tmp_path: Path
) -> None:
    log: list[str] = []
    children: Any = [ScriptedChild(name, experts, s, log) for name, s in (("a", 0.01), ("b", 0.03))]
    a, b = alternate(
        children, [1e-5, 1e-5], SHAPE, "F32", experts, 3, 4, tmp_path, lambda: log.append("|")
    )
    assert log == ["a", "b", *"|abb|a|abb|a"]  # one check each, then the rounds
    assert a.seconds == [0.01] * 4
    assert b.seconds == [0.03] * 4
    assert 2 <= a.experts_touched <= 6  # 3 tokens, top-2
    assert a.error < 1e-6


@pytest.mark.parametrize("factor", [0.9, float("nan")])
def test_a_peer_that_computes_something_else_is_refused(
    factor: float, experts: list[Expert], tmp_path: Path
) -> None:
    child: Any = ScriptedChild("wrong", experts, 0.1, [], factor)
    inputs = tmp_path / "inputs"
    expected = check_inputs(SHAPE, "F32", experts, 2, inputs)
    with pytest.raises(PeerError, match="wrong: is not the same layer"):
        check(child, 0.04, inputs, expected, tmp_path / "output")


def test_a_call_that_fills_a_round_counts_at_once(experts: list[Expert], tmp_path: Path) -> None:
    child: Any = ScriptedChild("long", experts, 9.0, [])
    (one,) = alternate([child], [1e-5], SHAPE, "F32", experts, 1, 2, tmp_path, lambda: None)
    assert one.seconds == [10.0] * 2


LIMITS = Limits(30, 300, 150, 1.5, 2.0, 2.0)


def row(peer: str, method: str, threads: int, num_tokens: int, seconds: list[float]) -> Row:
    operations = SHAPE.operations(num_tokens)
    weight_bytes = 1e6 * num_tokens**0.5
    return Row(peer, method, threads, num_tokens, seconds, weight_bytes, operations, 0.01, 0.25)


def block() -> Block:
    """Ours with two threads and one, llama.cpp, and the reference in three variants."""
    decode = [
        row(OURS, "q4_0", 2, 1, [1e-4, 2e-4, 1e-4]),
        row(OURS, "q4_0", 1, 1, [1.5e-4, 3e-4, 1.5e-4]),
        row("llama.cpp", "Q4_0", 2, 1, [2e-4, 4e-4, 2e-4]),
        row("reference", "LLAMAFILE", 2, 1, [8e-4, 16e-4, 8e-4]),
        row("reference", "LLAMAFILE", 1, 1, [5e-4, 10e-4, 5e-4]),
        row("reference", "RAWINT4", 1, 1, [9e-4, 18e-4, 9e-4]),
    ]
    few = [row(OURS, "q4_0", 2, 4, [1e-4] * 3)]
    prefill = [
        row(OURS, "q4_0", 2, 512, [4e-3] * 3),
        row(OURS, "q4_0", 1, 512, [6e-3] * 3),
        row("llama.cpp", "Q4_0", 2, 512, [12e-3] * 3),
    ]
    return Block(
        SHAPE,
        "avx2",
        "Q4_0",
        [
            Batch(1, LIMITS, Limits(20, 200, 100, 1.5, 2.0, 2.0), {"read": [25, 12.5, 25]}, decode),
            Batch(4, LIMITS, LIMITS, {"read": [30] * 3}, few),
            Batch(512, LIMITS, LIMITS, {"int8": [300] * 3, "fma": [150] * 3}, prefill),
        ],
    )


def test_figures_are_ratios_of_pairs_limits_and_the_best_rival() -> None:
    found = figures_of([block()], 2)
    assert [figure.what for figure in found] == [
        what for what in AIMS if "FMA" not in what and "pack" not in what
    ]
    gops = SHAPE.operations(512) / 4e-3 / 1e9
    values = [figure.value.median for figure in found]
    probe, prefill, read, decode, reference, few, prefill_gain, decode_gain = values
    assert probe == pytest.approx(gops / 300)
    assert prefill == pytest.approx(3)
    assert read == pytest.approx(10 / 25)  # 1 MB in 0.1 ms
    assert found[2].value == Ratio(*[pytest.approx(10 / 25)] * 3, 3)  # of the same round
    assert (decode, reference) == pytest.approx((2, 5))
    assert few == pytest.approx(1e-4 / (2e6 / 30e9))
    assert prefill_gain == pytest.approx(1.5 / 2)
    assert decode_gain == pytest.approx(1.5 / 1.5)
    assert found[3].value == Ratio(2, 2, 2, 3)  # although one round was twice as slow
    assert "1 thread" in found[4].source


def test_an_aim_is_of_its_formats_and_knows_its_direction() -> None:
    more, less = Aim(0.75, 0.95), Aim(1.4, 1.15)
    assert [more.met(value) for value in (0.7, 0.75, 0.95)] == ["**no**", "floor", "goal"]
    assert [less.met(value) for value in (1.5, 1.4, 1.1)] == ["**no**", "floor", "goal"]
    for name, met in (("q4_k", "floor"), ("q6_k", "")):
        figure = Figure(DECODE_LLAMA, name, Ratio(1.5, 1.4, 1.6, 15), "")
        assert (figure.met, figure.aim is None) == (met, not met)
    assert Figure(DECODE_PROBE, "bf16", Ratio(1, 1, 1, 1), "").aim is None
    named = {name for aims in AIMS.values() for aim in aims for name in aim.formats}
    assert named <= set(FORMATS)


def test_every_default_format_is_known_and_fits() -> None:
    assert set(DEFAULT_FORMATS) == set(SHAPES)
    for shape, names in DEFAULT_FORMATS.items():
        assert all(FORMATS[name].fits(SHAPES[shape]) for name in names.split(","))


def test_the_report_has_its_head_figures_and_measurements() -> None:
    measured = block()
    decode = measured.rows[0]
    assert measurement(decode).split(" | ") == [
        *("| kt q4_0, 2 threads", "1", "0.100", "0.100 to 0.150"),
        *(f"{SHAPE.operations(1) / 1e-4 / 1e9:.1f}", "10.00", "1.0e-02", "25% |"),
    ]
    found = figures_of([measured], 2)
    assert figure_line(found[3]).startswith(
        "| decode 1 ÷ llama.cpp | q4_0 | 2.00 | 2.00 to 2.00 | 3 | 1.4 | 2 | goal | 0.10 ms;"
    )
    text = markdown([measured], found, ["Machine: a computer", "Commit: abc"])
    for expected in ("- Machine: a computer", "read 20.0 to 30.0 GB/s", "x 2 layers, 512 x 256"):
        assert expected in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 2 + len(found) + 2 + len(measured.rows)
    assert len({line.count("|") for line in tables[: 2 + len(found)]}) == 1


def test_results_are_written_with_every_round(tmp_path: Path) -> None:
    write_json([block()], tmp_path / "results.json")
    (written,) = json.loads((tmp_path / "results.json").read_text())
    assert written["shape"]["num_experts"] == SHAPE.num_experts
    assert written["batches"][0]["before"]["read"] == 30
    assert written["batches"][2]["rows"][2]["seconds"] == [12e-3] * 3


def test_the_plot_shows_every_peer_and_both_ceilings(tmp_path: Path) -> None:
    blocks = [block() for _ in range(4)]
    roofline.draw(blocks, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    panel = roofline.Figure().subplots()
    roofline.draw_block(panel, blocks[0])
    drawn = {curve.get_label(): curve.get_ydata() for curve in panel.get_lines()}
    assert "kt q4_0, 1 thread" not in drawn  # the ceilings are of two
    rates = [one.rate for one in blocks[0].rows if one.peer == "llama.cpp"]
    assert list(drawn["llama.cpp Q4_0, 2 threads"]) == rates
    assert sum(str(label).startswith("_") for label in drawn) == 2  # ceilings are not in the legend
    said = {text.get_text() for text in panel.texts}
    assert said == {"1", "4", "512", "int8 maddubs+madd", "float32 FMA"}


def test_contenders_come_once_and_their_copies_fit() -> None:
    names = ["--formats", "q4_0,int4", "--threads", "2", "--memory", "1"]
    options = kernels.parse([*names, "--shape", "deepseek-v3"])
    pair = [FORMATS["q4_0"], FORMATS["int4"]]
    found = kernels.contenders_of(pair, options)
    assert [str(one) for one in found] == [
        *("kt q4_0@2", "kt int4@2", "kt q4_0@1", "llama.cpp Q4_0@2"),
        *("reference LLAMAFILE@2", "reference RAWINT4@2"),
        *("reference LLAMAFILE@1", "reference RAWINT4@1"),
    ]
    assert [one.only_decode for one in found] == [False] * 4 + [True] * 4
    # Too little memory for all experts: twice those of a token are the fewest.
    assert kernels.shape_of(pair, found, options).num_experts == 16
    options.shape = "gpt-oss"
    assert len(kernels.contenders_of(pair, options)) == 4  # the reference has no biases


def test_packing_rates_are_of_every_round_but_the_first() -> None:
    rates = pack_rates(SHAPE, "int4", ThreadPool(1), 2)
    assert len(rates) == 2
    assert spread(rates).median > 0


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
            PEERS[peer].command("BF16", "avx2")
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


def error_of(peer: str, method: str, blocks: str, shape: Shape, tmp_path: Path) -> float:
    write_weights(tmp_path / "weights", shape, blocks)
    experts = read_weights(tmp_path / "weights", shape, blocks)
    child = Child(peer, PEERS[peer].command(method, "avx2"))
    errors = []
    try:
        child.load(shape, blocks, tmp_path / "weights", max_tokens=16, num_threads=2)
        assert child.bytes_per_expert >= shape.weights_per_expert * 0.5
        for num_tokens in (11, 1):
            inputs = tmp_path / "inputs"
            expected = check_inputs(shape, blocks, experts, num_tokens, inputs)
            error, _ = check(child, max_error(method), inputs, expected, tmp_path / "output")
            errors.append(error)
    finally:
        child.close()
    return max(errors)


def both_shapes(peer: str) -> list[tuple[str, str, Shape]]:
    """Every method of a peer once, on one shape, and what it has for gpt-oss's layer."""
    found = {
        (method, one.blocks, shape): None
        for shape in (SHAPE, BIASED)
        for one in FORMATS.values()
        if shape is SHAPE or one.name in DEFAULT_FORMATS["gpt-oss"].split(",")
        for method in PEERS[peer].methods(one, shape)
    }
    return list(found)


@pytest.mark.parametrize(("method", "blocks", "shape"), both_shapes(OURS))
def test_our_kernel_computes_the_layer(
    method: str, blocks: str, shape: Shape, tmp_path: Path
) -> None:
    assert FORMATS[method].kernel_format in formats.FORMATS
    assert error_of(OURS, method, blocks, shape, tmp_path) <= max_error(method)


def built(peer: str) -> bool:
    try:
        PEERS[peer].command("BF16", "avx2")
    except PeerError:
        return False
    return True


@pytest.mark.skipif(not built("llama.cpp"), reason="llama.cpp is not built: kernels.py --build")
@pytest.mark.parametrize(("method", "blocks", "shape"), both_shapes("llama.cpp"))
def test_llama_cpp_computes_the_layer(
    method: str, blocks: str, shape: Shape, tmp_path: Path
) -> None:
    assert error_of("llama.cpp", method, blocks, shape, tmp_path) <= 0.04


@pytest.mark.skipif(not built("reference"), reason="the reference is not there: kernels.py --build")
@pytest.mark.parametrize(("method", "blocks", "shape"), both_shapes("reference"))
def test_the_reference_computes_the_layer(
    method: str, blocks: str, shape: Shape, tmp_path: Path
) -> None:
    # Its fp8 is made from the values here: 3 bits of mantissa.
    assert error_of("reference", method, blocks, shape, tmp_path) <= (
        0.06 if method == "FP8" else 0.04
    )
