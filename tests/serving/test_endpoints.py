"""The endpoints answer as programs expect."""

import base64
import io
import json

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from serving_client import DIGIT, jpeg, serving

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, ImageClassifier, fuse, load
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.serving.metrics import Counter

FILE = DEMO / "images" / "digit-8.png"


def as_json(picture, **parameters):
    return json.dumps({"inputs": base64.b64encode(picture).decode(), "parameters": parameters}).encode()


@pytest.fixture(scope="module")
def demo():
    with serving(ImageClassifier(DEMO)) as client:
        yield client


@pytest.fixture(scope="module")
def expected():
    return ImageClassifier(DEMO)(FILE, top_k=10)


def test_hugging_faces_client_gets_its_answers(demo, expected):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    client = huggingface_hub.InferenceClient(base_url=f"http://127.0.0.1:{demo.port}")
    for image in (str(FILE), DIGIT):
        answer = client.image_classification(image)
        assert [(one.label, round(one.score, 4)) for one in answer] == [
            (one["label"], round(one["score"], 4)) for one in expected[:5]
        ]
    answer = client.image_classification(str(FILE), top_k=2, function_to_apply="sigmoid")
    assert [one.label for one in answer] == [one["label"] for one in expected[:2]]
    assert answer[0].score > 0.99


def test_bytes_json_and_data_addresses_give_the_same(demo, expected):
    url = base64.b64encode(DIGIT).decode()
    for body, kind in [
        (DIGIT, "image/png"),
        (DIGIT, "application/octet-stream"),
        (as_json(DIGIT), "application/json"),
        (json.dumps({"inputs": f"data:image/png;base64,{url}"}).encode(), "application/json; charset=utf-8"),
        (
            json.dumps({"inputs": "\n".join(url[i : i + 76] for i in range(0, len(url), 76))}).encode(),
            "application/json",
        ),
    ]:
        answer = demo.post("/", body, Content_Type=kind)
        assert answer.status == 200, answer.content
        assert [one["index"] for one in answer.json()] == [one["index"] for one in expected[:5]]
        assert abs(answer.json()[0]["score"] - expected[0]["score"]) < 1e-4


def test_a_body_without_a_type_is_looked_at(demo):
    for body in (DIGIT, as_json(DIGIT)):
        connection = demo.connect()
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        connection.sendall(body)
        assert connection.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"


def test_parameters_come_in_the_query_or_the_body(demo):
    assert len(demo.post("/?top_k=3", DIGIT).json()) == 3
    assert len(demo.post("/?top_k=3", as_json(DIGIT, top_k=2), Content_Type="application/json").json()) == 2
    logits = demo.post("/?function_to_apply=none&top_k=10", DIGIT).json()
    model, processor = load(DEMO)
    exact = np.sort(np.array(fuse(model)(processor(str(FILE))))[0])[::-1]
    assert np.abs(np.array([one["score"] for one in logits]) - exact).max() < 1e-4


def test_several_labels_at_once_have_probabilities_of_their_own(small_processor, photo):
    config = ConvNextV2Config(
        hidden_sizes=[8] * 4, depths=[1] * 4, num_labels=3, problem_type="multi_label_classification"
    )
    with serving(ImageClassifier(ConvNextV2ForImageClassification(config).eval(), small_processor)) as client:
        scores = [one["score"] for one in client.post("/", jpeg(photo)).json()]
        assert all(0.4 < score < 0.6 for score in scores)  # with new weights all logits are about 0


def test_an_embedding_is_the_pooled_features(demo):
    model, processor = load(DEMO)
    features = np.array(fuse(model, pooled=True)(processor(str(FILE))))[0]
    answer = demo.post("/embed", DIGIT).json()["embedding"]
    assert np.abs(np.array(answer) - features).max() < 1e-4


def test_an_explanation_is_a_picture_or_its_numbers(demo):
    answer = demo.post("/explain?label=3&layer=stage1", DIGIT)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-label"] == "3"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    numbers = demo.post("/explain?label=3&format=json", DIGIT).json()
    model, processor = load(DEMO)
    logits = np.array(fuse(model)(processor(str(FILE))))[0]
    assert abs(np.sum(numbers["heat_map"]) - (logits[3] - logits.mean())) < 1e-3
    assert numbers["box"] == [0, 0, 64, 64]


def test_a_large_picture_is_explained_smaller_with_the_same_numbers(demo):
    large = io.BytesIO()
    Image.open(io.BytesIO(DIGIT)).convert("RGB").resize((3000, 1500)).save(large, "JPEG")
    drawn = Image.open(io.BytesIO(demo.post("/explain", large.getvalue()).content))
    assert drawn.size == (1024, 512)
    numbers = demo.post("/explain?format=json", large.getvalue()).json()
    assert numbers["size"] == [3000, 1500]
    assert numbers["box"] == [750, 0, 2250, 1500]
    classified = demo.post("/?top_k=1", large.getvalue()).json()[0]
    assert (numbers["label"], round(numbers["score"], 4)) == (classified["label"], round(classified["score"], 4))


def test_a_label_is_meant_by_name_or_by_index(small_model, small_processor, photo):
    with serving(ImageClassifier(small_model, small_processor)) as client:
        by_name = client.post("/explain?label=thing%202&against=thing%204&format=json", jpeg(photo)).json()
        by_index = client.post("/explain?label=%232&against=%234&format=json", jpeg(photo)).json()
        body = as_json(jpeg(photo), label=2, against=4, format="json")
        by_number = client.post("/explain", body, Content_Type="application/json").json()
        assert by_name["against"] == "thing 4"
        assert by_name == by_index == by_number


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "message"),
    [
        ("/", b"", "image/png", 400, "the body is empty"),
        ("/", b"no picture", "image/png", 400, "is not an image"),
        ("/", b"<p>", "text/html", 415, "is not read: send the picture's bytes"),
        ("/", b"--x", "multipart/form-data; boundary=x", 415, "is not read"),
        ("/", b"{", "application/json", 400, "the body is not JSON"),
        ("/", b"[" * 100_000, "application/json", 400, "JSON"),
        ("/", b"[]", "application/json", 400, "the JSON must be"),
        ("/", b'{"inputs": 3}', "application/json", 400, "the JSON must be"),
        ("/", b'{"inputs": "\xc3\xa9"}', "application/json", 400, "base64"),
        ("/", b'{"inputs": "", "parameters": 3}', "application/json", 400, "parameters must be a JSON object"),
        ("/?top_k=0", None, "image/png", 400, "top_k must be a whole number"),
        ("/?top_k=x", None, "image/png", 400, "top_k must be a whole number"),
        ("/?function_to_apply=tanh", None, "image/png", 400, "function_to_apply must be one of"),
        ("/?topk=3", None, "image/png", 400, "unknown parameter 'topk'"),
        ("/embed?top_k=1", None, "image/png", 400, "unknown parameter"),
        ("/explain?label=eleven", None, "image/png", 400, "no label is called 'eleven'"),
        ("/explain?label=%2399", None, "image/png", 400, "labels 0 to 9, but no 99"),
        ("/explain?label=1&against=1", None, "image/png", 400, "cannot be compared with itself"),
        ("/explain?layer=stage9", None, "image/png", 400, "layer must be one of"),
        ("/explain?layer=stage1&method=exact", None, "image/png", 400, "only the last stage"),
        ("/explain?legend=perhaps", None, "image/png", 400, "legend must be true or false"),
        ("/elsewhere", None, "image/png", 404, "there is nothing here"),
    ],
)
def test_a_mistake_is_json_with_a_sentence_and_the_right_status(demo, path, body, kind, status, message):
    answer = demo.post(path, DIGIT if body is None else body, Content_Type=kind)
    assert answer.status == status, answer.content
    assert answer.headers["content-type"] == "application/json"
    assert message in answer.error
    assert "\n" not in answer.error


def test_a_wrong_method_says_which_are_right(demo):
    answer = demo.ask("PUT", "/embed")
    assert answer.status == 405
    assert "POST" in answer.headers["allow"]


def test_health_says_live_and_ready(demo):
    assert demo.get("/health").json() == {"live": True, "ready": True}
    assert demo.get("/health/live").status == demo.get("/health/ready").status == 200
    assert demo.ask("HEAD", "/health").status == 200


def test_metrics_are_what_prometheus_reads(demo):
    demo.post("/", DIGIT)
    answer = demo.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in answer.content.decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    assert values['mlx_convnextv2_requests_total{path="/",status="200"}'] >= 1
    assert values["mlx_convnextv2_pictures_total"] >= 1
    buckets = [value for name, value in values.items() if name.startswith("mlx_convnextv2_request_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == values["mlx_convnextv2_request_seconds_count"]
    assert values["mlx_convnextv2_held_bytes"] == 0
    assert not [name for name in values if "elsewhere" in name]  # a path that a client makes up is no label


def test_the_page_and_its_files_are_in_the_package(demo):
    page = demo.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for file in ("app.js", "server.js", "view.js", "camera.js", "style.css", "icon.svg"):
        assert demo.get(f"/{file}").status == 200
    text = "".join(path.read_text() for path in (ROOT / "mlx_convnextv2/serving/page").iterdir())
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "").replace("http://localhost", "")
    assert "https:" not in text


def test_info_describes_the_model(demo):
    info = demo.get("/info").json()
    assert (info["num_labels"], info["parameters"], info["image_size"]) == (10, 154_954, 32)
    assert dict(zip(info["layers"], info["map_sides"], strict=True)) == {
        "stem": 8,
        "stage1": 8,
        "stage2": 4,
        "stage3": 2,
    }
    assert info["card"] == "# Card"


def test_a_count_is_told_in_full():
    counter = Counter("pictures_total", "Pictures.")
    counter.add(amount=1_234_567)
    assert list(counter.lines())[-1] == "mlx_convnextv2_pictures_total 1234567"


def test_a_label_that_is_no_text_of_unicode_is_answered_all_the_same():
    classifier = ImageClassifier(DEMO)
    classifier.labels[8] = "\ud800"
    with serving(classifier, name="\udce9") as client:
        assert client.post("/", DIGIT).json()[0]["label"] == "\ud800"
        assert client.post("/explain", DIGIT).status == client.get("/info").status == 200
