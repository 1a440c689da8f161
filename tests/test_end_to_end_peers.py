# SPDX-License-Identifier: Apache-2.0
"""tools/peers/end_to_end.py: that rounds alternate and pair, that what a program says of itself is
read, and that what fails is said. Real engines run where somebody calls the tool.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import end_to_end
from child import PeerError
from end_to_end import Compared, alternate
from engines import Kt, LlamaCppEngine, Offline, output_of, serving


class Fake:
    """An engine whose server is a few lines of Python."""

    def __init__(self, name: str, script: str = "") -> None:
        self.name = name
        self.script = script

    def offline(self, model: Path, *, prompt: int, generate: int, threads: int) -> Offline:
        return Offline(prompt, generate)

    def serve_command(
        self, model: Path, *, port: int, slots: int, context: int, threads: int
    ) -> list[str]:
        return [sys.executable, "-c", self.script, str(port)]


HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_rounds_alternate_and_their_values_pair():
    ours, theirs = Fake("kt"), Fake("llama.cpp")
    order: list[str] = []
    figure = Compared("rate", "tokens/s")

    def run(engine):
        order.append(engine.name)
        return [6.0 if engine is ours else 2.0]

    alternate((ours, theirs), 3, [figure], run)
    assert order == ["kt", "llama.cpp", "llama.cpp", "kt", "kt", "llama.cpp"]
    assert figure.ours == [6.0] * 3
    assert figure.theirs == [2.0] * 3
    assert "| 6.00 | 2.00 tokens/s | 3.00 [3.00, 3.00] | 3 |" in figure.line()


def test_a_server_is_awaited_and_ended(tmp_path):
    settings = {"slots": 1, "context": 8, "threads": 1, "log": tmp_path / "log"}
    with serving(Fake("kt", HEALTHY), tmp_path, **settings) as served:
        assert served.url.startswith("http://127.0.0.1:")
        assert Path(f"/proc/{served.pid}").exists()
    assert not Path(f"/proc/{served.pid}").exists()
    with (
        pytest.raises(PeerError, match=r"kt: no server: .*gone wrong"),
        serving(Fake("kt", "raise SystemExit('gone wrong')"), tmp_path, **settings),
    ):
        pass


def test_a_program_that_fails_says_why():
    assert output_of([sys.executable, "-c", "print(1)"]) == "1\n"
    fail = "import sys; print('because', file=sys.stderr); sys.exit(3)"
    with pytest.raises(PeerError, match=r"exit status 3: .*because"):
        output_of([sys.executable, "-c", fail])


def test_the_report_names_model_and_ratios(tmp_path):
    figures = [Compared("decode 64", "tokens/s", [3.0, 4.0], [2.0, 2.0])]
    end_to_end.write(figures, ["Model: a.gguf"], tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "Model: a.gguf" in report
    assert "| decode 64 | 3.50 | 2.00 tokens/s | 1.75" in report
    assert json.loads((tmp_path / "results.json").read_text())[0]["ours"] == [3.0, 4.0]


def test_bad_command_lines_are_refused(tmp_path, capsys):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    for words, rule in (
        ([], "must be a GGUF file"),
        ([str(tmp_path / "none.gguf")], "must be a GGUF file"),
        ([str(model), "--parts", "speed"], "is none of offline, http, load"),
        ([str(model), "--rounds", "0"], "must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            end_to_end.parse(words)
        assert rule in capsys.readouterr().err


def test_a_peer_that_is_not_built_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("KT_HOME", str(tmp_path))
    with pytest.raises(PeerError, match=r"end_to_end.py --build --isa avx2"):
        LlamaCppEngine("avx2").offline(tmp_path, prompt=1, generate=1, threads=1)


def test_ours_is_held_to_the_same_instructions(tmp_path):
    words = Kt("avx2").serve_command(tmp_path, port=1, slots=4, context=99, threads=2)
    assert words[:2] == ["env", "KT_ISA=avx2"]
    assert "env" not in Kt("native").serve_command(tmp_path, port=1, slots=4, context=99, threads=2)
