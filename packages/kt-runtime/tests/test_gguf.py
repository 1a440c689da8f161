# SPDX-License-Identifier: Apache-2.0
"""checkpoint.gguf: headers are read as the library `gguf` writes them, and refused by name when
they cannot be right."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kt_runtime.checkpoint.checkpoint import open_checkpoint
from kt_runtime.checkpoint.gguf import MAX_HEADER_BYTES, TYPES, Gguf, is_gguf, shard_paths
from kt_runtime.checkpoint.gguf_blocks import dequantize
from kt_runtime.llm import LLM
from kt_runtime.protocols import QuantTensor
from kt_runtime.text import ChatTemplate, Tokenizer

from .tiny_gguf import finish, write_tiny
from .tiny_tokenizers import byte_level

STRING, ARRAY, UINT32, UINT8, BOOL = 8, 9, 4, 0, 7


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(
    name: str | bytes = "t",
    shape: tuple[int, ...] = (8,),
    kind: int = 0,
    offset: int = 0,
    num_dims: int | None = None,
) -> bytes:
    dims = struct.pack("<I", len(shape) if num_dims is None else num_dims)
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + dims + sizes + struct.pack("<IQ", kind, offset)


def header(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    data: int = 64,
) -> bytes:
    """A whole file: header, padding to 32, `data` bytes."""
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def to_file(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return to_file


@pytest.mark.parametrize("version", [2, 3])
def test_values_of_every_type_are_those_written(
    write: Callable[[bytes], Path], version: int
) -> None:
    keys = (
        key("u8", 0, b"\xff"),
        key("i8", 1, b"\xff"),
        key("u16", 2, struct.pack("<H", 65535)),
        key("i16", 3, struct.pack("<h", -3)),
        key("u32", 4, struct.pack("<I", 2**32 - 1)),
        key("i32", 5, struct.pack("<i", -5)),
        key("f32", 6, struct.pack("<f", 1.5)),
        key("bool", 7, b"\x01"),
        key("text", 8, text("Grüße")),
        key("u64", 10, struct.pack("<Q", 2**64 - 1)),
        key("i64", 11, struct.pack("<q", -(2**63))),
        key("f64", 12, struct.pack("<d", 0.1)),
        key("numbers", ARRAY, array(5, 3, struct.pack("<3i", 1, -2, 3))),
        key("texts", ARRAY, array(STRING, 2, text("a") + text(""))),
        key("flags", ARRAY, array(BOOL, 2, b"\x00\x01")),
        key("none", ARRAY, array(6, 0)),
    )
    metadata = Gguf(write(header(keys, version=version))).metadata
    assert {k: list(v) if k in ("numbers", "none") else v for k, v in metadata.items()} == {
        "u8": 255,
        "i8": -1,
        "u16": 65535,
        "i16": -3,
        "u32": 2**32 - 1,
        "i32": -5,
        "f32": 1.5,
        "bool": True,
        "text": "Grüße",
        "u64": 2**64 - 1,
        "i64": -(2**63),
        "f64": 0.1,
        "numbers": [1, -2, 3],
        "texts": ["a", ""],
        "flags": [False, True],
        "none": [],
    }


def test_tensors_lie_where_the_library_puts_them(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    rng = np.random.default_rng(1)
    for i, (number, kind) in enumerate(TYPES.items()):
        blocks = rng.integers(0, 256, (2, 3, kind.nbytes * 256 // kind.elements), dtype=np.uint8)
        writer.add_tensor(f"t{i}", blocks, raw_dtype=Type(number))
    finish(writer)
    ours = Gguf(path)
    for theirs in gguf.GGUFReader(path).tensors:
        info = ours.tensors[theirs.name]
        assert (info.begin, info.nbytes) == (theirs.data_offset, theirs.n_bytes)
        assert info.shape == tuple(map(int, theirs.shape[::-1])) == (2, 3, 256)
        assert info.type.name == theirs.tensor_type.name
        held = ours.data(info.shard)[info.begin : info.begin + info.nbytes]
        assert bytes(held) == theirs.data.tobytes()


def test_types_are_those_of_the_library() -> None:
    for number, kind in TYPES.items():
        assert Type(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[Type(number)] == (kind.elements, kind.nbytes)


HUGE = 2**63
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "must be a readable GGUF file"),
    "other format": (b"PK\x03\x04" + bytes(64), "must be a GGUF file, beginning with b'GGUF'; got"),
    "version 1": (header(version=1), "version of model.gguf must be 2 or 3, little-endian; got 1"),
    "big-endian": (header(version=3 << 24), "little-endian; got 50331648"),
    "keys": (header(num_keys=HUGE), "number of keys in model.gguf must be at most . for its size"),
    "tensors": (header(num_tensors=HUGE), "number of tensors in model.gguf must be at most"),
    "long key": (header((struct.pack("<Q", HUGE) + b"abcdefgh",)), "complete.*its end in a key"),
    "long text": (
        header((key("a.b", STRING, struct.pack("<Q", 2**64 - 1)),)),
        "complete.*its end in a.b",
    ),
    "key is no UTF-8": (header((key(b"\xff", UINT8, b"\0"),)), "a key in .* must be UTF-8"),
    "text is no UTF-8": (header((key("a.b", STRING, text(b"\xc3")),)), "a.b in .* must be UTF-8"),
    "value type": (header((key("a.b", 13, b""),)), "type of 'a.b' .* one of 0 to 12; got 13"),
    "boolean": (header((key("a.b", BOOL, b"\x02"),)), "'a.b' in .* must be a boolean, 0 or 1; got"),
    "same key": (header((key("a.b", UINT8, b"\0"),) * 2), "key 'a.b' .* must be there once"),
    "array": (header((key("a.b", ARRAY, array(UINT8, HUGE)),)), "length of 'a.b' .* at most"),
    "texts": (header((key("a.b", ARRAY, array(STRING, HUGE)),)), "length of 'a.b' .* at most"),
    "nested": (
        header((key("a.b", ARRAY, array(ARRAY, 1, array(UINT8, 1, b"\0"))),)),
        "elements of 'a.b' .* must be numbers, booleans or strings; got value type 9",
    ),
    "alignment": (
        header((key("general.alignment", UINT32, struct.pack("<I", 24)),)),
        "general.alignment in .* must be a power of two from 8 to 65536; got 24",
    ),
    "alignment's type": (
        header((key("general.alignment", STRING, text("32")),)),
        "general.alignment .*; got '32'",
    ),
    "no axes": (header((), (tensor(shape=()),)), "tensor 't' .* must have 1 to 4 axes; got 0"),
    "many axes": (header((), (tensor(num_dims=5),)), "tensor 't' .* 1 to 4 axes; got 5"),
    "empty axis": (header((), (tensor(shape=(4, 0)),)), r"tensor 't' .* must fit .* got \(0, 4\)"),
    "long axis": (header((), (tensor(shape=(HUGE,)),)), "tensor 't' .* must fit its file"),
    "overflow": (header((), (tensor(shape=(1024,) * 4),)), "tensor 't' must end within the"),
    "type": (header((), (tensor(kind=20),)), "tensor 't' .* types F32, .*BF16; got 'type 20'"),
    "ragged": (header((), (tensor(shape=(40,), kind=2),)), "multiples of 32 for Q4_0; got 40"),
    "offset": (header((), (tensor(offset=2**64 - 32),)), "tensor 't' must end within the"),
    "unaligned": (header((), (tensor(offset=4),)), "tensor 't' .* aligned to 32 bytes; got 4"),
    "same tensor": (header((), (tensor(), tensor(offset=32))), "tensor t must be there once"),
    "overlap": (header((), (tensor("a"), tensor("b"))), "must not overlap; got 'a, b'"),
    "no data": (header((), (tensor(),), data=0), "must end within .* is the file complete"),
    "name is no UTF-8": (header((), (tensor(b"\xfe"),)), "a tensor's name in .* must be UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_impossible_header_is_refused_by_name(write: Callable[[bytes], Path], name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(ValueError, match=rf"^\[gguf\] .*{message}"):
        Gguf(write(content))


def test_a_header_has_a_largest_size(write: Callable[[bytes], Path]) -> None:
    """Whatever the file's size: a sparse file costs nothing to make."""
    count = MAX_HEADER_BYTES
    path = write(header((key("a.b", ARRAY, array(UINT8, count)),)))
    with path.open("r+b") as file:
        file.truncate(4 * MAX_HEADER_BYTES)
    with pytest.raises(ValueError, match=r"length of 'a.b' in model.gguf must be at most 134217"):
        Gguf(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[gguf\] .*no.gguf must be a readable GGUF file"):
        Gguf(tmp_path / "no.gguf")
    assert not is_gguf(tmp_path / "no.gguf")


def split_key(name: str, value: Any) -> bytes:
    return key(name, 2, struct.pack("<H", value))


def shard(number: int, count: int, *names: str) -> bytes:
    keys = (split_key("split.no", number), split_key("split.count", count))
    infos = [tensor(name, offset=32 * i) for i, name in enumerate(names)]
    return header(keys, tuple(infos))


def write_shards(directory: Path, *contents: bytes) -> Path:
    paths = shard_paths(directory / f"m-00001-of-{len(contents):05}.gguf")
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths[0]


def test_tensors_of_all_shards_are_found(tmp_path: Path) -> None:
    first = write_shards(tmp_path, shard(0, 3), shard(1, 3, "a", "b"), shard(2, 3, "c"))
    assert {n: info.shard for n, info in Gguf(first).tensors.items()} == {"a": 1, "b": 1, "c": 2}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (shard(0, 2), "split.no in m-00002-of-00002.gguf must be 1; got 0"),
        (shard(1, 3), "split.count in m-00002-of-00002.gguf must be 2; got 3"),
        (header(), "split.no in m-00002-of-00002.gguf must be 1; got None"),
        (shard(1, 2, "a"), "tensor a must be there once"),
        (b"", "m-00002-of-00002.gguf must be a readable GGUF file"),
    ],
)
def test_a_shard_that_does_not_belong_is_refused(
    tmp_path: Path, second: bytes, message: str
) -> None:
    first = write_shards(tmp_path, shard(0, 2, "a"), second)
    with pytest.raises(ValueError, match=rf"^\[gguf\] .*{message}"):
        Gguf(first)


def test_the_first_shard_and_all_others_are_needed(tmp_path: Path) -> None:
    first = write_shards(tmp_path, shard(0, 2, "a"), shard(1, 2, "b"))
    second = shard_paths(first)[1]
    with pytest.raises(ValueError, match="must be the first of the split ones, m-00001-of-00002"):
        Gguf(second)
    renamed = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ValueError, match=r"renamed.gguf must end in -00001-of-00002.gguf"):
        Gguf(renamed)
    renamed.rename(first)
    second.unlink()
    with pytest.raises(ValueError, match=r"m-00002-of-00002.gguf must lie beside m-00001"):
        Gguf(first)


_directory = TemporaryDirectory(prefix="kt-gguf-fuzz-")


@cache
def sound_file() -> bytes:
    """A whole small model with vocabulary and template, as the library writes it."""
    path, _ = write_tiny(
        "mixtral-ragged-tied",
        Path(_directory.name) / "sound",
        lambda name: Type.Q8_0 if "attn_q" in name else Type.F16,
        vocabulary=byte_level(),
        tokenizer__chat_template="{{ bos_token }}{{ messages[0].content }}",
    )
    return path.read_bytes()


@cache
def header_size() -> int:
    path = Path(_directory.name) / "sound.gguf"
    path.write_bytes(sound_file())
    return min(info.begin for info in Gguf(path).tensors.values())


def mutated(seed: int) -> bytes:
    """The sound file with a few bytes of its header changed, cut out or put in, or its end lost.

    Places are drawn evenly (hypothesis prefers the first bytes, where all is refused at once).
    Every second change hits the settings before the vocabulary, which is most of the header.
    """
    rng = random.Random(seed)
    content = bytearray(sound_file())
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(24, rng.choice([1200, header_size()]))
        kind = rng.choice(["bit", "bit", "byte", "number", "cut", "insert", "truncate"])
        if kind == "bit":
            content[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            content[at] = rng.randrange(256)
        elif kind == "number":
            number = rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
            size = rng.choice([1, 2, 4, 8])
            content[at : at + size] = number.to_bytes(8, "little")[-size:]
        elif kind == "cut":
            del content[at : at + rng.randint(1, 16)]
        elif kind == "insert":
            content[at:at] = rng.randbytes(rng.randint(1, 16))
        else:
            del content[rng.randrange(len(content)) :]
            break
    return bytes(content)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_any_mutation_loads_or_is_refused(seed: int) -> None:
    """ValueError or a model whose every tensor can be read; never another error, never a hang."""
    path = Path(_directory.name) / "mutated.gguf"
    path.write_bytes(mutated(seed))
    try:
        read_everything(path)
    except ValueError as error:
        if not str(error).startswith("["):  # by its form it is none of ours
            raise


def test_all_readers_of_a_model_share_one_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = Gguf.__init__

    def init(self: Gguf, path: str | Path) -> None:
        opened.append(Path(path))
        original(self, path)

    monkeypatch.setattr(Gguf, "__init__", init)
    path, _ = write_tiny("qwen3_moe", tmp_path, lambda _: Type.F32, vocabulary=byte_level())
    with LLM(path, num_threads=1, num_pages=8) as llm:
        assert llm.tokenizer is not None
    assert opened == [path]


def read_everything(path: Path) -> None:
    source = open_checkpoint(path).open_tensors()
    for name in source.names():
        held = source.get(name)
        values = dequantize(held) if isinstance(held, QuantTensor) else held
        assert tuple(values.shape) == source.shape(name)
    assert source.names()
    if Tokenizer.is_in(path):
        Tokenizer.from_pretrained(path).encode("The capital of France")
    ChatTemplate.from_pretrained(path)
