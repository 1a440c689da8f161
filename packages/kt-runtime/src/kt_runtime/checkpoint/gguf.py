# SPDX-License-Identifier: Apache-2.0
"""GGUF files, version 2 and 3, single and split: metadata and tensor positions, every header value
checked. Knows no architecture, interprets no block, imports no torch."""

from __future__ import annotations

import mmap
import re
import struct
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 counted in 32 bits and was published for weeks only
# The largest published headers (a vocabulary of 262,144 with its merges) take some 20 MB; what is
# decoded takes up to eight times as much memory, which this bounds.
MAX_HEADER_BYTES = 1 << 27
MAX_DIMS = 4  # ggml's own limit
MAX_SHARDS = 65535  # split.count is 16 bits wide
DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Value type → struct and array code; all are little-endian.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    _BOOL: "B",
    10: "Q",
    11: "q",
    12: "d",
}
_LENGTH = struct.Struct("<Q")  # before each string
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A tensor type: `nbytes` hold `elements` neighbours of a row; `format` is kt_kernel's name."""

    name: str
    format: str
    elements: int
    nbytes: int


TYPES: Mapping[int, GgmlType] = {
    0: GgmlType("F32", "float32", 1, 4),
    1: GgmlType("F16", "f16", 1, 2),
    2: GgmlType("Q4_0", "q4_0", 32, 18),
    3: GgmlType("Q4_1", "q4_1", 32, 20),
    8: GgmlType("Q8_0", "q8_0", 32, 34),
    12: GgmlType("Q4_K", "q4_k", 256, 144),
    13: GgmlType("Q5_K", "q5_k", 256, 176),
    14: GgmlType("Q6_K", "q6_k", 256, 210),
    30: GgmlType("BF16", "bf16", 1, 2),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        name: as in the file.
        shape: slowest axis first, as torch has it (the file says it the other way round).
        type: what its bytes are.
        shard: index of its file.
        begin: offset of its first byte in that file.
        nbytes: its length.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    shard: int
    begin: int
    nbytes: int


class Gguf:
    """An opened model: one file, or all files of a split one.

    Opening maps the files and reads their headers. The files must not be cut off while they are in
    use: reading mapped pages that are gone ends the process. Immutable; thread-safe.

    Attributes:
        path: the (first) file.
        metadata: key → int, float, bool, str, list of str or bool, or `array` of numbers.
        tensors: name → position.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises ValueError `[gguf] …` naming file, key or tensor."""
        self.path = Path(path)
        first = _Shard(self.path, 0)
        self.metadata: Mapping[str, Any] = first.metadata
        shards = [first]
        for number, other in enumerate(_other_shards(self.path, first.metadata), start=1):
            shards.append(_Shard(other, number))
            _check_split(other, shards[-1].metadata, number, len(shard_paths(self.path)))
        self._data = [shard.data for shard in shards]
        self.tensors: dict[str, TensorInfo] = {}
        for shard in shards:
            for info in shard.tensors:
                _check(info.name not in self.tensors, f"tensor {info.name} must be there once", 2)
                self.tensors[info.name] = info
        promised = self.metadata.get("split.tensors.count")
        if len(shards) > 1 and promised is not None:
            rule = f"split.tensors.count in {self.path.name} must be the tensors of all files"
            _check(promised == len(self.tensors), f"{rule}, {len(self.tensors)}", promised)

    def data(self, shard: int) -> memoryview:
        """All bytes of one file, mapped read-only."""
        return self._data[shard]


def is_gguf(path: Path) -> bool:
    """Whether the file begins as a GGUF file does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def shard_paths(path: Path) -> list[Path]:
    """All files of the model whose first file is `path`, by their names alone: they end in
    "-00001-of-00003.gguf" and so on where there are several."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    names = (f"{match['stem']}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1))
    return [path.with_name(name) for name in names]


def _other_shards(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    count = metadata.get("split.count", 1)
    number = metadata.get("split.no", 0)
    if count in (0, 1):
        return []
    paths = shard_paths(path)
    _check(
        count == len(paths) <= MAX_SHARDS,
        f"{path.name} must end in -00001-of-{count:05}.gguf as its split.count says"
        if isinstance(count, int)
        else f"split.count in {path.name} must be a whole number",
        count if not isinstance(count, int) else path.name,
    )
    rule = f"the model's file must be the first of the split ones, {paths[0].name}"
    _check(number == 0 and path == paths[0], rule, path.name)
    for other in paths[1:]:
        _check(other.is_file(), f"{other.name} must lie beside {path.name}", "no such file")
    return paths[1:]


def _check_split(path: Path, metadata: Mapping[str, Any], number: int, count: int) -> None:
    for key, expected in (("split.no", number), ("split.count", count)):
        got = metadata.get(key)
        _check(got == expected, f"{key} in {path.name} must be {expected}", got)


class _Shard:
    """One file. Parsing is linear in the header's size: every count is first compared with the
    bytes that are left."""

    def __init__(self, path: Path, number: int) -> None:
        if sys.byteorder != "little":
            raise ValueError("[gguf] the machine must be little-endian; got a big-endian one")
        self._name = path.name
        self._map = _map(path)
        self._size = len(self._map)
        self._limit = min(self._size, MAX_HEADER_BYTES)
        self._at = 0
        self.metadata: dict[str, Any] = {}
        magic = self._map[:4]
        _check(magic == MAGIC, f"{path.name} must be a GGUF file, beginning with {MAGIC!r}", magic)
        self._at = 4
        version = self._scalar("I", "version")
        rule = f"version of {path.name} must be 2 or 3, little-endian"
        _check(version in VERSIONS, rule, version)
        num_tensors = self._count("the number of tensors", 24)
        num_keys = self._count("the number of keys", 13)
        for _ in range(num_keys):
            self._read_key()
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        rule = f"general.alignment in {path.name} must be a power of two from 8 to 65536"
        ok = isinstance(alignment, int) and alignment in (1 << i for i in range(3, 17))
        _check(ok, rule, alignment)
        infos = [self._read_tensor(number, alignment) for _ in range(num_tensors)]
        begin = -(-self._at // alignment) * alignment
        self.tensors = [self._placed(info, begin) for info in infos]
        self._check_overlap()
        self.data = memoryview(self._map)

    def _read_key(self) -> None:
        key = self._string("a key")
        _check(key not in self.metadata, f"key {key!r} in {self._name} must be there once", 2)
        self.metadata[key] = self._value(self._scalar("I", key), key)

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise ValueError(
                f"[gguf] the value type of {key!r} in {self._name} must be one of 0 to 12; "
                f"got {kind}"
            )
        value = self._scalar(_SCALARS[kind], key)
        return self._bool(value, key) if kind == _BOOL else value

    def _array(self, key: str) -> Any:
        kind = self._scalar("I", key)
        if kind == _STRING:
            return self._strings(key)
        if kind not in _SCALARS:
            raise ValueError(
                f"[gguf] the elements of {key!r} in {self._name} must be numbers, booleans or "
                f"strings; got value type {kind}"
            )
        code = _SCALARS[kind]
        size = struct.calcsize("<" + code)
        values = array(code)
        values.frombytes(self._take(self._count(f"the length of {key!r}", size) * size, key))
        return [self._bool(value, key) for value in values] if kind == _BOOL else values

    def _strings(self, key: str) -> list[str]:
        """As many `_string`s as an array says: vocabularies have hundreds of thousands."""
        values: list[str] = []
        count = self._count(f"the length of {key!r}", 8)
        at, limit, data, length = self._at, self._limit, self._map, _LENGTH.unpack_from
        try:
            for _ in range(count):
                begin = at + 8
                at = begin + length(data, at)[0] if begin <= limit else limit + 1
                if at > limit:
                    raise self._cut_off(key)
                values.append(str(data[begin:at], "utf-8"))
                self._at = at
        except UnicodeDecodeError as error:
            raise self._not_utf8(key, error) from None
        return values

    def _read_tensor(self, shard: int, alignment: int) -> TensorInfo:
        name = self._string("a tensor's name")
        where = f"tensor {name!r} in {self._name}"
        num_dims = self._scalar("I", where)
        _check(1 <= num_dims <= MAX_DIMS, f"{where} must have 1 to {MAX_DIMS} axes", num_dims)
        shape = tuple(self._scalar("Q", where) for _ in range(num_dims))[::-1]
        # No axis is longer than the file has bits: products stay small numbers.
        _check(all(1 <= n <= 8 * self._size for n in shape), f"{where} must fit its file", shape)
        kind = self._scalar("I", where)
        supported = ", ".join(known.name for known in TYPES.values())
        _check(kind in TYPES, f"{where} must have one of the types {supported}", f"type {kind}")
        ggml_type = TYPES[kind]
        rule = f"rows of {where} must be multiples of {ggml_type.elements} for {ggml_type.name}"
        _check(shape[-1] % ggml_type.elements == 0, rule, shape[-1])
        offset = self._scalar("Q", where)
        _check(offset % alignment == 0, f"{where} must be aligned to {alignment} bytes", offset)
        nbytes = prod(shape) // ggml_type.elements * ggml_type.nbytes
        return TensorInfo(name, shape, ggml_type, shard, offset, nbytes)

    def _placed(self, info: TensorInfo, begin: int) -> TensorInfo:
        end = begin + info.begin + info.nbytes
        rule = f"tensor {info.name!r} must end within the {self._size} bytes of {self._name}"
        _check(end <= self._size, rule, f"its end at {end}: is the file complete?")
        at = begin + info.begin
        return TensorInfo(info.name, info.shape, info.type, info.shard, at, info.nbytes)

    def _check_overlap(self) -> None:
        for one, next_one in pairwise(sorted(self.tensors, key=lambda info: info.begin)):
            rule = f"tensors of {self._name} must not overlap"
            _check(one.begin + one.nbytes <= next_one.begin, rule, f"{one.name}, {next_one.name}")

    def _count(self, what: str, least_bytes: int) -> int:
        """How many things of at least this many bytes follow."""
        count: int = self._scalar("Q", what)
        left = (self._limit - self._at) // least_bytes
        _check(count <= left, f"{what} in {self._name} must be at most {left} for its size", count)
        return count

    def _string(self, what: str) -> str:
        at, limit, data = self._at, self._limit, self._map
        if at + 8 <= limit:
            end = at + 8 + int.from_bytes(data[at : at + 8], "little")
            if end <= limit:
                self._at = end
                try:
                    return data[at + 8 : end].decode("utf-8")
                except UnicodeDecodeError as error:
                    raise self._not_utf8(what, error) from None
        raise self._cut_off(what)

    def _scalar(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code), what))[0]

    def _bool(self, value: int, key: str) -> bool:
        _check(value in (0, 1), f"{key!r} in {self._name} must be a boolean, 0 or 1", value)
        return bool(value)

    def _take(self, nbytes: int, what: str) -> bytes:
        begin = self._at
        if begin + nbytes > self._limit:
            raise self._cut_off(what)
        self._at = begin + nbytes
        return self._map[begin : begin + nbytes]

    def _not_utf8(self, what: str, error: UnicodeDecodeError) -> ValueError:
        return ValueError(f"[gguf] {what} in {self._name} must be UTF-8; got {error}")

    def _cut_off(self, what: str) -> ValueError:
        return ValueError(
            f"[gguf] the header of {self._name} must be complete, within {self._limit} bytes; "
            f"got its end in {what} at byte {self._at}"
        )


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise ValueError(f"[gguf] {path} must be a readable GGUF file; got {error}") from None


def _check(ok: bool, rule: str, got: Any) -> None:
    if not ok:
        raise ValueError(f"[gguf] {rule}; got {got!r:.200}")
