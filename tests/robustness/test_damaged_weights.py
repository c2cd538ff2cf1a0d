"""Weight files that were cut or changed on their way: refused in a sentence that names the file."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from checkpoint_files import SHARD_BYTES, assert_refused, header_end, write_parts

from mlx_convnextv2 import save


@pytest.mark.parametrize("where", ["0", "1", "7", "8", "9", "header / 2", "header - 1", "header", "header + 1", "-1"])
def test_a_file_that_ends_at_a_boundary_is_named_in_the_error(copy, where):
    file = copy / "model.safetensors"
    header = header_end(file)
    named = {"header / 2": header // 2, "header - 1": header - 1, "header": header, "header + 1": header + 1}
    file.write_bytes(file.read_bytes()[: named[where] if where in named else int(where)])
    assert_refused(copy, "model.safetensors", "truncated or corrupt")


def test_a_truncated_shard_is_named_in_the_error(tmp_path, small_model):
    save(small_model, tmp_path / "shards", format="huggingface", max_shard_bytes=SHARD_BYTES)
    file = sorted((tmp_path / "shards").glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-1])
    assert_refused(tmp_path / "shards", file.name, "truncated or corrupt")


def test_bytes_behind_the_last_tensor_are_refused(copy):
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert_refused(copy, "model.safetensors", "truncated or corrupt")


BAD_HEADERS = [
    *(b"", b"null", b"{", b"\xff" * 16, b"[" * 100_000),
    b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 99999999]}}',
    b'{"a": {"dtype": "F32", "shape": [4611686018427387905, 4], "data_offsets": [0, 16]}}',  # 2**64 + 4 elements
]


@pytest.mark.parametrize("header", BAD_HEADERS, ids=lambda header: header[:64])
def test_a_header_that_makes_no_sense_is_refused(copy, header):
    write_parts(copy / "model.safetensors", header, b"\0" * 8)
    assert_refused(copy, "model.safetensors", "truncated or corrupt")


def test_a_header_that_claims_to_be_huge_is_refused(copy):
    file = copy / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 10**9) + file.read_bytes()[8:])
    assert_refused(copy, "model.safetensors", "truncated or corrupt")


def test_a_name_that_a_header_has_twice_is_refused(copy):
    file = copy / "model.safetensors"
    header, data = file.read_bytes()[8 : header_end(file)].rstrip(), file.read_bytes()[header_end(file) :]
    assert b'"classifier.bias"' in header
    end = len(data)
    again = b'"classifier.bias": {"dtype": "F32", "shape": [7], "data_offsets": [%d, %d]}' % (end, end + 28)
    write_parts(file, header[:-1] + b", " + again + b"}", data + b"\0" * 28)
    assert_refused(copy, "model.safetensors")


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        *((np.float64, "F64"), (np.int32, "I32"), (np.int64, "I64"), (np.uint8, "U8"), (np.int8, "I8")),
        *((np.bool_, "BOOL"), (np.uint16, "U16")),
    ],
)
def test_a_tensor_of_another_type_is_named_with_its_type(copy, dtype, stored):
    content = np.zeros(7, dtype).tobytes()
    header = {"classifier.bias": {"dtype": stored, "shape": [7], "data_offsets": [0, len(content)]}}
    write_parts(copy / "model.safetensors", json.dumps(header).encode(), content)
    assert_refused(copy, "classifier.bias", stored, "float32, float16, bfloat16")
