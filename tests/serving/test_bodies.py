"""Whatever a body holds, it becomes a picture and parameters, or a refusal with a sentence."""

import base64
import json
from contextlib import contextmanager

import pytest
from hypothesis import given, settings, strategies as st

pytest.importorskip("starlette", reason="needs the extra serve")

from mlx_convnextv2.serving import parameters
from mlx_convnextv2.serving.bodies import parse
from mlx_convnextv2.serving.errors import RefusedError

KINDS = [
    "",
    "application/json",
    "image/png",
    "text/plain",
    "multipart/form-data",
    "application/JSON; charset=x",
    "\xff",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@contextmanager
def refused_at_most():
    """Lets no other error out than a refusal, which has to be a short sentence."""
    try:
        yield
    except RefusedError as error:
        good = 400 <= error.status < 500 and 0 < len(error.sentence) < 1000 and "\n" not in error.sentence
        if not good:
            pytest.fail(f"{error.status}: {error.sentence!r}")


@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_any_bytes(content, kind):
    with refused_at_most():
        body = parse(content, kind, {"top_k": "1"})
        assert isinstance(body.picture, bytes)
        assert "top_k" in body.parameters


@settings(max_examples=50)
@given(VALUES)
def test_any_json(value):
    for document in (value, {"inputs": value}, {"inputs": "", "parameters": value}):
        with refused_at_most():
            parse(json.dumps(document).encode(), "application/json", {})


@settings(max_examples=50)
@given(VALUES)
def test_any_parameter(value):
    given = {"x": value, "top_k": value, "function_to_apply": value}
    for read in (
        lambda: parameters.check_known(given, ("top_k",)),
        lambda: parameters.top_k(given),
        lambda: parameters.function_to_apply(given, "softmax"),
        lambda: parameters.label(given, "x"),
        lambda: parameters.text(given, "x", ("a", "b"), None),
        lambda: parameters.switch(given, "x", True),
    ):
        with refused_at_most():
            read()


@given(st.binary(max_size=100), st.dictionaries(st.text(max_size=5), st.integers(), max_size=3))
def test_what_clients_encode_comes_out_again(picture, wanted):
    content = json.dumps({"inputs": base64.b64encode(picture).decode(), "parameters": wanted}).encode()
    body = parse(content, "application/json", {})
    assert (body.picture, body.parameters) == (picture, wanted)


@pytest.mark.parametrize("value", ["[]", "{}", "1", '"a"'])
def test_json_of_many_small_values_is_refused_before_it_takes_twenty_times_its_bytes(value):
    document = f'{{"inputs": "", "parameters": {{"top_k": [{",".join([value] * 10_000)}]}}}}'
    with pytest.raises(RefusedError, match="too many values"):
        parse(document.encode(), "application/json", {})
