# SPDX-License-Identifier: Apache-2.0
"""The file of `Experts.save`: packed experts as safetensors. Moves and checks bytes; packs nothing.

Any safetensors reader opens it. Its tensors, in this order and without gaps:

- "experts.{e}.{gate|up|down}": uint8 (bundles, bytes of a bundle), expert by expert as in memory;
  what is in them, `formats.FORMATS` says;
- "biases.{gate|up|down}", those that there are: float32 (num_experts, outputs).

They begin at a multiple of 4096, because the header is padded with spaces. Its `__metadata__` has
format ("kt_kernel.experts"), version, layout (the version of the packed bytes), num_experts,
hidden_size, intermediate_size, group_size, gate (if any), up, down (their formats), checksums (of
the tensors in this order, CRC-32 in hex) and header_checksum (of the header as JSON without spaces
and without this entry).
"""

import json
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, BinaryIO, NoReturn

import numpy as np

from kt_kernel import _core
from kt_kernel.formats import FORMATS

__all__ = ("load", "save")

# What the metadata and the order of tensors are; the packed bytes have a version of their own.
_IDENTITY = {"format": "kt_kernel.experts", "version": "1", "layout": str(_core.LAYOUT_VERSION)}
_SIZES = ("num_experts", "hidden_size", "intermediate_size", "group_size")
_PROJECTIONS = ("gate", "up", "down")
# Files are mapped in pages of this size: tensors are as aligned in memory as they are in the file.
_PAGE = 4096
# Room for 100,000 matrices. Reading JSON may take 30 times as much memory.
_MAX_HEADER = 16 << 20


def save(core: _core.Experts, path: str | os.PathLike[str], num_threads: int) -> None:
    """Write complete experts, all of the file or nothing; see `Experts.save`."""
    if not core.complete:
        raise ValueError(
            "[experts.save] every projection of every expert must be put before; got incomplete "
            "experts"
        )
    tensors = _tensors(core)
    text = _json(_header(core, tensors, list(_checksums(tensors, num_threads))))
    text = text.ljust(-(len(text) + 8) % _PAGE + len(text))
    if len(text) > _MAX_HEADER:
        raise ValueError(
            f"[experts.save] header must take at most {_MAX_HEADER} bytes; got {len(text)}"
        )
    biases = [tensor for name, tensor in tensors.items() if name.startswith("biases.")]
    _write(Path(path), [len(text).to_bytes(8, "little"), text, core.packed, *biases])


def load(
    path: str | os.PathLike[str],
    pool: _core.ThreadPool | None,
    *,
    copy: bool,
    verify: bool,
) -> _core.Experts:
    """Experts whose weights are a file's own pages, or a copy; see `Experts.load`."""
    with Path(path).open("rb") as file:
        header, begin = _read_header(file)
        core = _read_experts(file, header, begin, pool, copy)
    tensors = _tensors(core)
    checksums = header["__metadata__"].get("checksums", "").split(" ")
    if len(checksums) != len(tensors):
        _refuse(f"checksums must be {len(tensors)}", len(checksums))
    _check_header(header, _header(core, tensors, checksums))
    if verify:
        actual = _checksums(tensors, 1 if pool is None else pool.num_threads)
        for name, want, got in zip(tensors, checksums, actual, strict=True):
            if want != got:
                _refuse(f"{name} must have checksum {want}", got)
    return core


def _refuse(rule: str, actual: object) -> NoReturn:
    raise ValueError(f"[experts.load] {rule}; got {actual}")


def _tensors(core: _core.Experts) -> dict[str, Any]:
    """Every tensor by name, in the order of the file."""
    projections = [p for p in _PROJECTIONS if p != "gate" or core.gated]
    names = [(f"experts.{e}.{p}", p) for e in range(core.num_experts) for p in projections]
    bundles = {p: core.bundles(p) for p in projections}
    ends = accumulate((bundles[p][0] * bundles[p][1] for _, p in names), initial=0)
    packed = core.packed
    tensors: dict[str, Any] = {
        name: packed[begin:end].reshape(bundles[p])
        for (name, p), (begin, end) in zip(names, pairwise(ends), strict=True)
    }
    for projection in projections:
        bias = core.bias(projection)
        if bias is not None:
            tensors[f"biases.{projection}"] = bias
    return tensors


def _checksums(tensors: dict[str, Any], num_threads: int) -> Iterable[str]:
    with ThreadPoolExecutor(num_threads) as threads:  # zlib lets go of the GIL
        return threads.map(_checksum, tensors.values())


def _checksum(content: Any) -> str:
    return f"{zlib.crc32(content):08x}"


def _json(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _header(
    core: _core.Experts, tensors: dict[str, Any], checksums: Sequence[str]
) -> dict[str, Any]:
    """The only header that a file of these experts can have."""
    metadata = dict(_IDENTITY)
    metadata |= {size: str(getattr(core, size)) for size in _SIZES}
    metadata |= {p: core.format(p) for p in _PROJECTIONS if p != "gate" or core.gated}
    metadata["checksums"] = " ".join(checksums)
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "U8" if tensor.dtype == np.uint8 else "F32",
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes],
        }
        begin += tensor.nbytes
    metadata["header_checksum"] = _checksum(_json(header))
    return header


def _write(path: Path, parts: Sequence[Any]) -> None:
    # In the same directory, because a rename replaces a file atomically only within a file system.
    temporary = path.parent / f".kt-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        size = sum(len(memoryview(part).cast("B")) for part in parts)
        rule = f"[experts.save] directory must be writable and have room for {size} bytes"
        raise OSError(error.errno, f"{rule}; got {error.strerror}", str(path)) from error
    finally:
        with suppress(OSError):  # the error that brought us here says more
            temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a file of experts of this version, and where the tensors begin."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, _MAX_HEADER):
        rule = f"file must be safetensors with a header within it, of at most {_MAX_HEADER} bytes"
        _refuse(rule, f"a header of {length} in a file of {size}")
    try:
        header = json.loads(file.read(length).decode())
    except (ValueError, RecursionError) as error:
        _refuse("header must be JSON", error)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse("header must have __metadata__, an object of strings", shortened(metadata))
    for key, want in _IDENTITY.items():
        if metadata.get(key) != want:
            _refuse(f"{key} must be {want}", shortened(metadata.get(key)))
    return header, 8 + length


def _read_experts(
    file: BinaryIO, header: dict[str, Any], begin: int, pool: _core.ThreadPool | None, copy: bool
) -> _core.Experts:
    metadata = header["__metadata__"]
    for key in _SIZES:
        if not re.fullmatch("[0-9]{1,9}", metadata.get(key, "")):
            _refuse(f"{key} must be a number", shortened(metadata.get(key)))
    experts, hidden, intermediate, group_size = (int(metadata[key]) for key in _SIZES)
    formats = {p: metadata.get(p) for p in _PROJECTIONS}
    for projection, name in formats.items():
        if name not in FORMATS and (name is not None or projection != "gate"):
            _refuse(f"{projection} must be one of {', '.join(FORMATS)}", shortened(name))
    outputs = {"gate": intermediate, "up": intermediate, "down": hidden}
    biases = [p for p in _PROJECTIONS if f"biases.{p}" in header]
    # Before anything of the size of num_experts is made.
    tensors = experts * sum(name is not None for name in formats.values()) + len(biases)
    if len(header) - 1 != tensors:
        _refuse(f"header must have {tensors} tensors", len(header) - 1)
    bias_bytes = {p: 4 * experts * outputs[p] for p in biases}
    end = os.fstat(file.fileno()).st_size - sum(bias_bytes.values())
    core = _core.Experts.from_file(
        experts,
        hidden,
        intermediate,
        metadata.get("gate"),
        metadata["up"],
        metadata["down"],
        group_size,
        file.fileno(),
        begin,
        max(end - begin, 0),
        copy,
        pool,
    )
    file.seek(end)
    for projection in biases:
        values = np.frombuffer(file.read(bias_bytes[projection]), np.float32)
        core.put_bias(projection, values.reshape(experts, outputs[projection]))
    return core


def _check_header(header: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every entry must be what sizes and formats give: no other offsets, shapes or dtypes."""
    have, want = ({**h["__metadata__"], **h} for h in (header, expected))
    for name in (*want, *have):
        if name != "__metadata__" and want.get(name) != have.get(name):
            rule = (
                f"{name} must be {shortened(want[name])}"
                if name in want
                else f"{name} must not be there"
            )
            _refuse(rule, shortened(have.get(name)))
