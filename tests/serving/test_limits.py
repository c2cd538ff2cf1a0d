"""One client cannot keep the server from others: not by size, not by number, not by being slow."""

import io
import json
import struct
import threading
import time
import zlib

import mlx.core as mx
import pytest
from PIL import Image
from serving_client import DIGIT, serving
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_convnextv2 import ConvNextImageProcessor, ImageClassifier, load
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.serving.limits import Limits

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


def png(width, height):
    """A PNG of so many pixels in a few bytes."""
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    return content.getvalue()


def until(condition, seconds=30.0):
    """Wait for what happens in other threads."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


class Gate:
    """A classifier whose model waits to be let through."""

    def __init__(self):
        self.classifier = ImageClassifier(DEMO)
        self.open = threading.Event()
        self.batches: list[int] = []
        predict = self.classifier.predict

        def wait(pixel_values: mx.array) -> mx.array:
            self.batches.append(len(pixel_values))
            assert self.open.wait(60)
            return predict(pixel_values)

        self.classifier.predict = wait


def in_threads(client, count, body=DIGIT):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.post("/", body))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def metric(client, name):
    lines = client.get("/metrics").content.decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"mlx_convnextv2_{name} "))


def test_a_body_that_is_too_large_is_refused_announced_or_not():
    with serving(ImageClassifier(DEMO), Limits(max_body=10_000)) as client:
        assert client.post("/", DIGIT).status == 200
        answer = client.post("/", b"x" * 20_000)
        assert answer.status == 413
        assert "larger than 0.01 MB" in answer.error
        with client.connect() as connection:
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
        with client.connect() as connection:  # announced, and never sent
            connection.sendall(HEAD + b"Content-Length: 99999999999999999999\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
        assert client.post("/", DIGIT).status == 200


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    with serving(ImageClassifier(DEMO), Limits(max_pixels=1_000_000)) as client:
        answer = client.post("/", png(3_000, 3_000))
        assert answer.status == 413
        assert "too many pixels" in answer.error
        assert client.post("/explain", png(3_000, 3_000)).status == 413
        assert client.post("/", png(900, 900)).status == 200


def test_a_picture_that_lies_about_its_data_is_a_bad_request():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 500, 500, 8, 2, 0, 0, 0)
    lying = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )
    with serving(ImageClassifier(DEMO)) as client:
        for body in (lying, DIGIT[:200], DIGIT[:40]):
            assert client.post("/", body).status == 400


@pytest.mark.parametrize(
    "path", [b"GET /health", *(pytest.param(p, marks=pytest.mark.slow) for p in (b"POST /elsewhere", b"PUT /"))]
)
def test_a_body_that_nobody_reads_does_not_go_on_for_ever(path):
    def send_without_end(connection):
        while True:
            connection.sendall(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
            time.sleep(0.001)

    with serving(ImageClassifier(DEMO)) as client, client.connect() as connection:
        connection.sendall(path + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_without_end(connection)


def test_a_slow_body_is_given_up_and_its_place_is_free_again():
    with serving(ImageClassifier(DEMO), Limits(body_seconds=0.3, max_waiting=1)) as client:
        with client.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 10)
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        assert client.post("/", DIGIT).status == 200
        assert metric(client, "held_bytes") == 0


def test_slow_bodies_take_no_place_of_those_who_wait():
    with serving(ImageClassifier(DEMO), Limits(max_waiting=1)) as client:
        slow = [client.connect() for _ in range(5)]
        for connection in slow:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(DIGIT) + DIGIT[:10])
        until(lambda: metric(client, "held_bytes") == 50)
        assert client.post("/", DIGIT).status == 200
        for connection in slow:
            connection.sendall(DIGIT[10:])
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
            connection.close()


def test_pictures_that_keep_their_size_may_be_no_larger_than_what_is_worth_holding():
    model, _ = load(DEMO)
    classifier = ImageClassifier(model, ConvNextImageProcessor(do_resize=False))
    with serving(classifier) as client:
        assert client.post("/", png(1000, 1000)).status == 200
        assert client.post("/", png(2000, 2000)).status == 413


def test_a_body_that_is_cut_off_leaves_nothing_behind():
    with serving(ImageClassifier(DEMO)) as client:
        for _ in range(5):
            with client.connect() as connection:
                connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 50_000)
        until(lambda: metric(client, "held_bytes") == metric(client, "waiting") == 0)
        assert client.post("/", DIGIT).status == 200


def test_a_client_that_sends_no_headers_is_cut_off():
    with serving(ImageClassifier(DEMO), Limits(header_seconds=0.3)) as client:
        for first in (b"", b"POST / HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with client.connect() as connection:
                connection.sendall(first)
                if first.startswith(b"GET"):  # the next request on the same connection
                    assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
                    connection.sendall(b"GET /hea")
                connection.settimeout(30)
                rest = b""
                while data := connection.recv(10_000):
                    rest += data
                assert b"HTTP/1.1 200" not in rest[10:]


def test_connections_beyond_the_limit_are_told_to_come_again():
    with serving(ImageClassifier(DEMO), Limits(max_connections=3)) as client:
        held = [client.connect() for _ in range(3)]
        for connection in held:  # so that the server has seen them
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
        with client.connect() as fourth:
            answer = fourth.makefile("rb").read()
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503")
            assert b"Retry-After: 1" in head
            assert f"Content-Length: {len(body)}".encode() in head
            assert "too many connections" in json.loads(body)["error"]
        for connection in held:
            connection.close()

        def is_answered():
            try:
                return client.get("/health").status == 200
            except OSError:
                return False

        until(is_answered)


def test_a_client_that_does_not_read_is_cut_off():
    """It asks again and again, until neither side's system takes more, and then the server ends it."""
    requests = b"GET /app.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100_000
    with serving(ImageClassifier(DEMO), Limits(write_seconds=0.3)) as client:
        with client.connect() as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(requests * 10)
        assert client.get("/health").status == 200


def test_more_than_may_wait_are_told_to_come_again_and_the_others_are_answered():
    gate = Gate()
    with serving(gate.classifier, Limits(max_waiting=4)) as client:
        threads, answers = in_threads(client, 4)
        until(lambda: metric(client, "waiting") == 4)
        refused = client.post("/", DIGIT)
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert client.get("/health").status == 200  # which does not wait for the model
        gate.open.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status for answer in answers] == [200] * 4
        assert client.post("/", DIGIT).status == 200


def test_the_bytes_of_all_bodies_together_are_bounded():
    gate = Gate()
    body = DIGIT + b"\0" * 50_000  # what follows a PNG's end is not read
    with serving(gate.classifier, Limits(max_total_bytes=120_000)) as client:
        threads, answers = in_threads(client, 2, body)
        until(lambda: metric(client, "held_bytes") == 2 * len(body))
        assert client.post("/", body).status == 503
        gate.open.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status for answer in answers] == [200] * 2
        assert metric(client, "held_bytes") == 0


def test_those_who_wait_go_through_the_model_together():
    gate = Gate()
    with serving(gate.classifier, Limits(max_batch=4)) as client:
        first, answers = in_threads(client, 1)
        until(lambda: gate.batches == [1])
        others, more = in_threads(client, 6)
        until(lambda: metric(client, "waiting") == 7)
        time.sleep(0.3)  # until they are decoded, too
        gate.open.set()
        for thread in first + others:
            thread.join(60)
        assert gate.batches == [1, 4, 2]
        assert {answer.json()[0]["label"] for answer in answers + more} == {"8"}


def test_one_thread_alone_computes():
    classifier = ImageClassifier(DEMO)
    predict, threads = classifier.predict, set()

    def note(pixel_values):
        threads.add(threading.current_thread().name)
        return predict(pixel_values)

    classifier.predict = note
    with serving(classifier) as client:
        for thread in in_threads(client, 12)[0]:
            thread.join(60)
    assert threads == {"mlx_convnextv2 inference"}


def test_an_error_of_the_model_is_told_and_the_next_picture_is_answered(caplog):
    classifier = ImageClassifier(DEMO)
    predict, fails = classifier.predict, [True]

    def sometimes(pixel_values):
        if fails.pop() if fails else False:
            raise RuntimeError("secret details of the machine")
        return predict(pixel_values)

    classifier.predict = sometimes
    with serving(classifier) as client:
        answer = client.post("/", DIGIT)
        assert answer.status == 500
        assert "secret" not in answer.error
        assert "secret details of the machine" in caplog.text
        assert client.post("/", DIGIT).status == 200


def test_nothing_is_written_to_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    written = []
    original = open

    def watch(file, mode="r", *arguments, **options):
        if any(letter in mode for letter in "wax+"):
            written.append(file)
        return original(file, mode, *arguments, **options)

    monkeypatch.setattr("builtins.open", watch)
    large = io.BytesIO()
    Image.effect_noise((2000, 1500), 90).save(large, "PNG")  # 3 MB, more than forms keep in memory
    with serving(ImageClassifier(DEMO)) as client:
        for path in ("/", "/embed", "/explain"):
            assert client.post(path, large.getvalue()).status == 200
    assert written == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"max_body": 0}, {"max_waiting": -1}, {"max_wait": "1"}, {"max_batch": True}])
def test_a_limit_is_a_positive_number(wrong):
    with pytest.raises(ValueError, match="must be a positive number"):
        Limits(**wrong)


def test_little_is_read_at_a_time_so_that_tiny_chunks_keep_nobody_waiting(monkeypatch):
    read: list[int] = []
    parse = H11Protocol.data_received

    def note(self, data):
        read.append(len(data))
        parse(self, data)

    monkeypatch.setattr(H11Protocol, "data_received", note)
    with serving(ImageClassifier(DEMO)) as client:
        assert client.post("/", DIGIT + bytes(2_000_000)).status == 200  # what follows a PNG's end is not read
    assert sum(read) > 2_000_000
    assert max(read) <= 16_384


def test_what_is_no_http_is_told_in_json_and_is_no_failure_of_the_server(caplog):
    with serving(ImageClassifier(DEMO)) as client:
        with client.connect() as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            assert connection.makefile("rb").read().endswith(b'{"error": "this is no valid HTTP/1.1 request"}')
        with client.connect() as connection:
            connection.sendall(b"POST /elsewhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 404")
            connection.sendall(b"no length\r\n")
            assert b"HTTP" not in connection.makefile("rb").read()  # a second answer within the first
    assert caplog.text == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # clients without an answer
def test_a_second_ctrl_c_gives_up_what_waits_and_leaves_no_thread_that_python_could_not_end():
    gate, before = Gate(), set(threading.enumerate())
    with serving(gate.classifier, Limits(max_batch=1)) as client:
        clients, _ = in_threads(client, 3)
        until(lambda: gate.batches and metric(client, "waiting") == 3)
        client.server.should_exit = client.server.force_exit = True
        threading.Timer(0.5, gate.open.set).start()
    for thread in clients:
        thread.join(60)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.endswith("inference")]
    assert gate.batches == [1]
