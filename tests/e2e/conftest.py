# SPDX-License-Identifier: Apache-2.0
"""A real `kt serve` in a process of its own, and clients of it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kt_runtime.inspect import resolve_model

KT = Path(sys.executable).with_name("kt")
MODEL = "smolmoe-exact"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 30.0


@dataclass
class Server:
    """A running server.

    Attributes:
        lines: what it printed before it listened.
        log: what it wrote to standard error.
    """

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def metrics(self) -> dict[str, float]:
        """Samples by name, those with labels as name{value}."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            text = response.read().decode()
        samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(sample.labels.values())
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return samples

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait(STOP_TIMEOUT_S)


def start_server(*options: str) -> Server:
    """Start `kt serve` on a free port and wait until it listens."""
    command = [KT, "serve", MODEL, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server = Server(process)
    assert process.stdout is not None
    assert process.stderr is not None
    stderr = process.stderr
    threading.Thread(target=lambda: server.log.extend(stderr), daemon=True).start()
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            server.lines.append(line.rstrip())
            if match := re.fullmatch(r"listening on (http://\S+)", line.rstrip()):
                server.url = match[1]
                return server
    finally:
        watchdog.cancel()
    raise AssertionError(f"the server did not start:\n{''.join(server.log)}")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The demo model, built now if it is not there."""
    return resolve_model(MODEL)


@pytest.fixture(scope="session")
def server(model_path: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    server = start_server()
    yield server
    status = server.stop()
    assert status == 0, "".join(server.log)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client
