# SPDX-License-Identifier: Apache-2.0
"""Progress of a build on stderr: a bar on a terminal, one plain line per phase elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class BuildProgress:
    """Reports the phases of one build.

    Args:
        enabled: False reports nothing.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    @contextmanager
    def phase(self, description: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Report one phase for as long as the block runs.

        Args:
            description: What is being done, for a person to read.
            total: Number of steps the phase has; None when it is not known.

        Yields:
            A function to call after each step.
        """
        if not self._enabled:
            yield lambda: None
        elif sys.stderr.isatty():
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=Console(stderr=True)) as bar:
                task = bar.add_task(description, total=total)
                yield lambda: bar.advance(task)
                bar.update(task, total=total or 1, completed=total or 1)
        else:
            start = time.perf_counter()
            print(f"{description} ...", file=sys.stderr, flush=True)
            yield lambda: None
            seconds = time.perf_counter() - start
            print(f"{description}: {seconds:.1f} s", file=sys.stderr, flush=True)
