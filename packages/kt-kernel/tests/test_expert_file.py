# SPDX-License-Identifier: Apache-2.0
"""Experts.save and Experts.load: what a file holds, what is refused, what a failure leaves."""

import json
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from kt_kernel import Activation, Experts, MoE
from kt_kernel.formats import FORMATS

from .cases import MOE
from .moe_layer import MoeLayer

MIXED = {"gate": "int4", "up": "q8_0", "down": "bf16"}


@pytest.fixture(params=[True, False], ids=["mmap", "copy"])
def mmap(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "experts.safetensors"


def mixed(layer: MoeLayer, rng) -> Experts:
    """Experts with a format for each projection and two biases."""
    case = layer.case
    experts = Experts.empty(case.num_experts, case.hidden_size, case.intermediate_size, **MIXED)
    for projection in MIXED:
        for e in range(case.num_experts):
            experts.put(e, projection, getattr(layer, projection)[e])
    for projection in ("up", "down"):
        outputs = getattr(layer, projection).shape[1]
        bias = rng.standard_normal((case.num_experts, outputs), np.float32)
        experts.put_bias(projection, bias)
    return experts


@pytest.fixture
def saved(path, rng):
    """A file of `mixed` experts: its path, header, and where its tensors begin."""
    mixed(MoeLayer(MOE[1], rng), rng).save(path)
    return path, *header_of(path)


def header_of(path: Path) -> tuple[dict, int]:
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:begin]), begin


def with_header(path: Path, header: object) -> Path:
    """The file's tensors below another header."""
    tensors = path.read_bytes()[header_of(path)[1] :]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text = text.ljust(-(len(text) + 8) % 64 + len(text))
    path.write_bytes(len(text).to_bytes(8, "little") + text + tensors)
    return path


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].takes_floats])
def test_loaded_experts_compute_the_same_bits(format, mmap, path, pool, rng):
    layer = MoeLayer(MOE[2], rng)
    experts = layer.pack(format, pool, group_size=64)
    experts.save(path, pool=pool)
    loaded = Experts.load(path, pool=pool, mmap=mmap)
    assert np.array_equal(layer.forward(loaded, pool), layer.forward(experts, pool))
    assert loaded.complete
    assert loaded.nbytes == experts.nbytes


def test_formats_and_biases_of_every_projection_come_back(mmap, path, pool, rng):
    layer = MoeLayer(MOE[1], rng)
    experts = mixed(layer, rng)
    experts.save(path)
    loaded = Experts.load(path, mmap=mmap)
    assert np.array_equal(layer.forward(loaded, pool), layer.forward(experts, pool))
    loaded.put_bias("down", np.zeros((4, 83), np.float32))  # biases are the caller's to change
    assert not np.array_equal(layer.forward(loaded, pool), layer.forward(experts, pool))


def test_experts_without_a_gate_and_one_scale_per_row(mmap, path, pool, rng):
    layer = MoeLayer(MOE[1], rng)
    experts = Experts.empty(4, 83, 51, gate=None, up="int8", down="int4", group_size=0)
    for e in range(4):
        experts.put(e, "up", layer.up[e])
        experts.put(e, "down", layer.down[e])
    experts.save(path)
    outs = []
    for each in (experts, Experts.load(path, mmap=mmap)):
        moe = MoE(each, top_k=2, max_tokens=8, activation=Activation("relu2"), pool=pool)
        outs.append(np.empty_like(layer.hidden))
        moe.forward(layer.hidden, layer.topk_ids, layer.topk_weights, outs[-1])
    assert np.array_equal(*outs)


def test_any_safetensors_reader_opens_it(saved, path, pool):
    layer = MoeLayer(MOE[1], np.random.default_rng(0))
    tensors = safetensors.numpy.load_file(path)
    assert len(tensors) == 4 * 3 + 2
    assert tensors["experts.3.up"].shape == (64 / 32, 3 * (64 + 1024))  # 3 blocks of K: scales, q
    assert tensors["biases.up"].shape == (4, 51)
    packed = layer.pack("q8_0", pool)._core.packed
    q8_0 = tensors["experts.0.up"].size
    assert np.array_equal(tensors["experts.0.up"].ravel(), packed[q8_0 : 2 * q8_0])
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert {name: metadata[name] for name in MIXED} == MIXED
    assert (metadata["num_experts"], metadata["hidden_size"]) == ("4", "83")


def test_tensors_begin_at_a_page(saved):
    path, _, begin = saved
    assert begin % 4096 == 0
    assert Experts.load(path)._core.packed.ctypes.data % 4096 == 0


def test_mapped_weights_are_the_pages_of_the_file(saved, mmap):
    path, _, _ = saved
    loaded = Experts.load(path, mmap=mmap)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    shared = [line[1] for line in maps if line[-1] == str(path)]
    assert shared == (["r--s"] if mmap else [])
    del loaded
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_loaded_weights_are_read_only(saved, mmap):
    path, _, _ = saved
    loaded = Experts.load(path, mmap=mmap)
    with pytest.raises(ValueError, match=r"^\[experts\.put\] .*; got loaded ones"):
        loaded.put(0, "up", np.ones((51, 83), np.float32))


def test_a_copy_is_read_in_pieces_by_all_threads(path, pool):
    experts = Experts.empty(3, 1024, 1024, gate=None, up="f16", down="f16")
    weight = np.arange(1024 * 1024, dtype=np.float32).reshape(1024, 1024)
    for e in range(3):
        experts.put(e, "up", weight / 2**10 + e)
        experts.put(e, "down", weight / 2**11 - e)
    experts.save(path, pool=pool)
    assert experts.nbytes > 8 << 20  # one piece
    for threads in (None, pool):
        loaded = Experts.load(path, pool=threads, mmap=False, verify=False)
        assert np.array_equal(loaded._core.packed, experts._core.packed)


def test_saving_needs_no_second_copy(path, pool):
    experts = Experts.empty(4, 1024, 1024, gate=None, up="int8", down="int8")
    for e in range(4):
        experts.put(e, "up", np.ones((1024, 1024), np.float32))
        experts.put(e, "down", np.ones((1024, 1024), np.float32))
    tracemalloc.start()
    experts.save(path, pool=pool)
    Experts.load(path, pool=pool)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < experts.nbytes / 8


def test_a_mapped_file_may_be_replaced(path, pool, rng):
    layer = MoeLayer(MOE[1], rng)
    layer.pack("int4", pool).save(path)
    loaded = Experts.load(path)
    before = layer.forward(loaded, pool)
    layer.pack("int8", pool).save(path)
    assert np.array_equal(layer.forward(loaded, pool), before)
    loaded.save(path)  # from the old pages onto their own name
    assert np.array_equal(layer.forward(Experts.load(path), pool), before)


def test_failure_leaves_the_old_file_and_nothing_else(saved, tmp_path):
    path, _, _ = saved
    before = path.read_bytes()
    experts = Experts.empty(1, 256, 256, gate=None, up="float32", down="float32")
    with pytest.raises(ValueError, match=r"^\[experts\.save\] every projection .* got incomplete"):
        experts.save(path)
    for projection in ("up", "down"):
        experts.put(0, projection, np.ones((256, 256), np.float32))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the disk is full after these
    try:
        with pytest.raises(OSError, match=r"\[experts\.save\] .*room for 528384 bytes; got File"):
            experts.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match=r"\[experts\.save\] .* got No such file"):
        experts.save(tmp_path / "nowhere" / "x.safetensors")


@pytest.mark.parametrize("tensor", ["experts.0.gate", "experts.3.down", "biases.down"])
def test_a_flipped_bit_is_found_and_named(tensor, saved, mmap, pool):
    path, header, begin = saved
    content = bytearray(path.read_bytes())
    content[begin + header[tensor]["data_offsets"][1] - 1] ^= 1
    path.write_bytes(content)
    expected = rf"^\[experts\.load\] {tensor} must have checksum .{{8}}; got .{{8}}$"
    for threads in (None, pool):
        with pytest.raises(ValueError, match=expected):
            Experts.load(path, mmap=mmap, pool=threads)
    assert Experts.load(path, mmap=mmap, verify=False).complete


def test_a_flipped_bit_of_the_header_is_found_even_unverified(saved):
    path, _, begin = saved
    good = path.read_bytes()
    for byte in range(8, begin, 13):
        content = bytearray(good)
        content[byte] ^= 4
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^\[experts\.load\] "):
            Experts.load(path, verify=False)


def edit(*keys: str, value: object):
    def change(header):
        entry = header
        for key in keys[:-1]:
            entry = entry[key]
        if value is None:
            del entry[keys[-1]]
        else:
            entry[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("__metadata__", value=None), r"header must have __metadata__.*got None"),
        (edit("__metadata__", value=[1]), r"header must have __metadata__.*got \[1\]"),
        (edit("__metadata__", "x", value=3), r"header must have __metadata__, an object of str"),
        (edit("__metadata__", "format", value="pt"), r"format must be kt_kernel.*; got 'pt'"),
        (edit("__metadata__", "version", value="2"), r"version must be 1; got '2'"),
        (edit("__metadata__", "layout", value="999"), r"layout must be \d+; got '999'"),
        (edit("__metadata__", "up", value="int3"), r"up must be one of .*int4.*; got 'int3'"),
        (edit("__metadata__", "down", value=None), r"down must be one of .*; got None"),
        (edit("__metadata__", "up", value="\ud800"), r"up must be one of .*; got '\\ud800'"),
        (edit("__metadata__", "group_size", value="48"), r"group_size must be 32, .* got 48"),
        (edit("__metadata__", "hidden_size", value="x"), r"hidden_size must be a number; got 'x'"),
        (edit("__metadata__", "hidden_size", value="9" * 5000), r"hidden_size must be a number"),
        (edit("__metadata__", "hidden_size", value="0"), r".*must be positive; got 4, 0, 51"),
        (edit("__metadata__", "hidden_size", value="083"), r"hidden_size must be '83'; got '083'"),
        (edit("__metadata__", "hidden_size", value="84"), r"weights .* bytes; got"),
        (edit("__metadata__", "hidden_size", value="999999999"), r"weight must have at most"),
        (edit("__metadata__", "num_experts", value="999999999"), r"header must have 2999999999 t"),
        (edit("__metadata__", "gate", value=None), r"header must have 10 tensors; got 14"),
        (edit("__metadata__", "down", value="f16"), r"header_checksum must be"),
        (edit("__metadata__", "checksums", value=None), r"checksums must be 14; got 1"),
        (edit("__metadata__", "checksums", value=" ".join("0" * 14)), r"header_checksum must be"),
        (edit("__metadata__", "header_checksum", value=None), r"header_checksum must .*got None"),
        (edit("__metadata__", "other", value="1"), r"other must not be there; got '1'"),
        (edit("experts.0.up", "dtype", value="I8"), r"experts\.0\.up must be .*U8.*; got .*I8"),
        (edit("experts.0.up", "shape", value=[1]), r"experts\.0\.up must be .*; got .*\[1\]"),
        (edit("experts.0.up", "data_offsets", value=[0, 7168]), r"experts\.0\.up must be .*got"),
        (edit("experts.3.down", "data_offsets", value=[0, 2**70]), r"experts\.3\.down must be"),
        (edit("experts.3.down", value=None), r"header must have 14 tensors; got 13"),
        (edit("experts.4.down", value={}), r"header must have 14 tensors; got 15"),
        (edit("biases.up", "dtype", value="F64"), r"biases\.up must be .*F32.*; got .*F64"),
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_is_refused(change, message, saved, mmap):
    path, header, _ = saved
    change(header)
    with pytest.raises(ValueError, match=rf"^\[experts\.load\] {message}"):
        Experts.load(with_header(path, header), mmap=mmap)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", r"header must be JSON; got "),
        (b"[]", r"header must have __metadata__, .* got None"),
        (b"\xff\xff", r"header must be JSON; got .*decode"),
        (b"[" * 100_000, r"header must be JSON; got .*recursion"),
        (b'{"a":' + b"9" * 10_000 + b"}", r"header must be JSON; got .*digit"),
    ],
)
def test_a_header_that_is_no_object_is_refused(text, message, saved):
    path, _, _ = saved
    with pytest.raises(ValueError, match=rf"^\[experts\.load\] {message}"):
        Experts.load(with_header(path, text))


@pytest.mark.parametrize("length", [0, 4, 8, 9, 4095, 4096, -4, -1, 1])
def test_a_file_cut_off_or_continued_is_refused(length, saved, mmap):
    path, _, _ = saved
    content = path.read_bytes()
    path.write_bytes(content + b"\0" if length == 1 else content[:length])
    with pytest.raises(ValueError, match=r"^\[experts\.load\] (file|weights) .* got "):
        Experts.load(path, mmap=mmap)


@pytest.mark.parametrize("length", [0, 17 << 20, 2**63, 2**64 - 1])
def test_a_length_of_the_header_beyond_reason_is_refused(length, saved):
    path, _, _ = saved
    content = path.read_bytes()
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + content[8:])
        file.truncate(32 << 20)
    with pytest.raises(
        ValueError, match=rf"^\[experts\.load\] file must .*got a header of {length}"
    ):
        Experts.load(path)


def test_tensors_at_an_odd_address_are_refused(saved):
    path, header, begin = saved
    text = json.dumps(header).encode()
    text = text.ljust(len(text) + 1 - (8 + len(text)) % 2)  # an odd beginning
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[begin:])
    with pytest.raises(ValueError, match=r"^\[experts\.load\] weights must begin at .* got byte"):
        Experts.load(path)


def test_a_directory_that_is_a_file_is_named(saved):
    file = saved[0]
    message = r"\[experts\.save\] directory must be writable.*; got "
    with pytest.raises(OSError, match=message) as info:
        Experts.load(file).save(file / "experts")
    assert info.value.filename == str(file / "experts")


def test_files_that_are_not_there_or_not_ours(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        Experts.load(path)
    with pytest.raises(IsADirectoryError):
        Experts.load(tmp_path)
    safetensors.numpy.save_file({"a": np.ones(3)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"^\[experts\.load\] format must be .* got 'pt'"):
        Experts.load(path)


FUZZ = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@FUZZ
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(content, path):
    for begin in (b"", len(content).to_bytes(8, "little")):
        path.write_bytes(begin + content)
        with pytest.raises(ValueError, match=r"^\[experts\.load\] "):
            Experts.load(path)


@FUZZ
@given(data=st.data())
def test_arbitrary_entries_in_a_header_are_refused(data, saved):
    path, header, _ = saved
    where = data.draw(st.sampled_from([header, *header.values()]))
    key = data.draw(st.sampled_from(sorted(where)) | st.text())
    value = data.draw(JSON | st.text().map(str) | st.integers(-1, 2**65).map(str))
    before = dict(where)
    where[key] = value
    try:
        if where != before:
            with_header(path, header)
            with pytest.raises(ValueError, match=r"^\[experts\.load\] "):
                Experts.load(path)
    finally:
        where.clear()
        where.update(before)
