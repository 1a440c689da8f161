# SPDX-License-Identifier: Apache-2.0
"""`make run`: serves a model on loopback, asks one question with the real openai client, streams
the answer, stops.

Shows the whole stack at work from outside, as a user's program would use it; imports none of our
packages.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from openai import OpenAI, OpenAIError

KT = Path(sys.executable).parent / "kt"
READY = re.compile(r"listening on (http://\S+)")
START_TIMEOUT_S = 600  # the first run downloads and builds the demo model
STOP_TIMEOUT_S = 30


def main() -> int:
    """Ask, print the answer and the figures; 0 if the answer came and the server stopped
    cleanly.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smolmoe-exact")
    parser.add_argument("--prompt", default="What is the capital of France?")
    parser.add_argument("--max-tokens", type=int, default=256)
    arguments = parser.parse_args()
    if not arguments.prompt.strip():
        parser.error('the question is empty; PROMPT="Name three rivers." make run asks one')
    # No log lines between the words of the answer.
    command = ["env", "KT_LOG=warning", KT, "serve", "--port", "0", "--", arguments.model]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        answered = converse(server, arguments.model, arguments.prompt, arguments.max_tokens)
    except KeyboardInterrupt:  # the server has heard it too, and stops
        answered = False
    finally:
        status = stop(server)
    if not answered:
        return 1
    print(f"  server stopped with exit status {status}")
    return 0 if status == 0 else 1


def converse(server: subprocess.Popen[str], model: str, prompt: str, max_tokens: int) -> bool:
    """Wait for the server, ask, and print all there is to know; whether an answer came."""
    watchdog = threading.Timer(START_TIMEOUT_S, server.kill)
    watchdog.daemon = True
    watchdog.start()
    lines: list[str] = []
    url = wait_until_listening(server, lines)
    in_time = watchdog.is_alive()
    watchdog.cancel()
    if url is None:
        why = "its own message is above" if in_time else f"not within {START_TIMEOUT_S} s"
        print(f"the server did not start: {why}", file=sys.stderr)
        return False
    try:
        ask(url, model, prompt, max_tokens)
    except OpenAIError as error:
        print(f"\nthe server did not answer: {error}", file=sys.stderr)
        return False
    # The kernel target and weight format that ran, in the server's own words.
    for line in lines:
        print(f"  {line}")
    return True


def stop(server: subprocess.Popen[str]) -> int:
    """Tell the server to stop, and insist if it does not; its exit status."""
    server.send_signal(signal.SIGTERM)
    try:
        return server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def wait_until_listening(server: subprocess.Popen[str], lines: list[str]) -> str | None:
    """Read the server's lines until it listens; a thread keeps reading after that, so that it
    never blocks.
    """
    assert server.stdout is not None
    for line in server.stdout:
        lines.append(line.rstrip())
        if match := READY.search(line):
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return match[1]
    return None


def ask(url: str, model: str, prompt: str, max_tokens: int) -> None:
    """One streamed chat completion, printed as it comes, then its figures."""
    print(f"\n> {prompt}\n", flush=True)
    started = time.perf_counter()
    first = last = 0.0
    usage = None
    stream = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0.0,
        max_tokens=max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        usage = chunk.usage or usage
        if chunk.choices and (text := chunk.choices[0].delta.content):
            last = time.perf_counter()
            first = first or last
            print(text, end="", flush=True)
    if usage is None or not first:
        raise OpenAIError("the stream ended without an answer")
    print("\n")
    print(f"  time to first token  {first - started:.3f} s ({usage.prompt_tokens} prompt tokens)")
    if usage.completion_tokens > 1 and last > first:
        rate = (usage.completion_tokens - 1) / (last - first)
        print(f"  decode               {rate:.1f} tokens/s ({usage.completion_tokens} tokens)")


if __name__ == "__main__":
    sys.exit(main())
