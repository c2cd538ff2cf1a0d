"""Other sites' pages, other names and strangers are refused before a body is read."""

import pytest
from serving_client import DIGIT, serving

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.serving.access import Access, access_for, host_name, is_local

KEY = "a long random key"
SITE = "https://example.org"


@pytest.fixture(scope="module")
def open_server():
    with serving(ImageClassifier(DEMO)) as client:
        yield client


@pytest.fixture(scope="module")
def locked_server():
    with serving(ImageClassifier(DEMO), access=Access(origins=frozenset({SITE}), api_key=KEY)) as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000"])
def test_names_of_this_machine_are_answered(open_server, host):
    assert open_server.get("/health", Host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "10.0.0.1"])
def test_another_name_is_refused_because_a_site_may_have_led_it_here(open_server, host):
    answer = open_server.post("/", DIGIT, Host=host)
    assert answer.status == 421
    assert "allow the name with --allow-host" in answer.error


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://["},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/explain"])
def test_a_page_of_another_site_may_not_ask(open_server, headers, path):
    answer = open_server.post(path, DIGIT, **headers)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_page_itself_may_ask_and_a_link_may_lead_to_it(open_server):
    own = f"127.0.0.1:{open_server.port}"
    assert open_server.post("/", DIGIT, Origin=f"http://{own}", Host=own).status == 200
    assert open_server.get("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200


def test_a_site_that_is_allowed_may_ask_and_read(locked_server):
    answer = locked_server.ask("OPTIONS", "/", Origin=SITE, Access_Control_Request_Method="POST")
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == SITE
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    answer = locked_server.post("/", DIGIT, Origin=SITE, Authorization=f"Bearer {KEY}")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == SITE
    assert answer.headers["vary"] == "Origin"
    assert locked_server.post("/", DIGIT, Origin=f"{SITE}.evil.example", Authorization=f"Bearer {KEY}").status == 403


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer no", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xe9"])
@pytest.mark.parametrize("path", ["/", "/embed", "/explain"])
def test_without_the_key_nothing_is_computed(locked_server, given, path):
    answer = locked_server.post(path, DIGIT, **({} if given is None else {"Authorization": given}))
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "Authorization: Bearer KEY" in answer.error


def test_with_the_key_everything_is_and_the_page_is_open(locked_server):
    for path in ("/", "/embed", "/explain"):
        assert locked_server.post(path, DIGIT, Authorization=f"bearer {KEY}").status == 200
    assert locked_server.get("/").status == locked_server.get("/health").status == 200
    assert locked_server.get("/metrics").status == locked_server.get("/info").status == 401


def test_hugging_faces_client_sends_the_key_as_its_token(locked_server):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    client = huggingface_hub.InferenceClient(base_url=f"http://127.0.0.1:{locked_server.port}", api_key=KEY)
    assert client.image_classification(DIGIT, top_k=1)[0].label == "8"


@pytest.mark.parametrize("path", ["/", "/app.js", "/health", "/nothing"])
def test_every_answer_keeps_browsers_strict(open_server, path):
    headers = open_server.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "microphone=()" in headers["permissions-policy"]
    assert "server" not in headers


def test_there_is_no_cors_unless_asked(open_server):
    assert "access-control-allow-origin" not in open_server.get("/health").headers
    assert open_server.ask("OPTIONS", "/", Origin=SITE).status == 403


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)]
    + [("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("example.org", False)],
)
def test_what_only_this_machine_reaches(host, local):
    assert is_local(host) is local


def test_beyond_this_machine_addresses_are_names_and_others_are_asked_for():
    access = access_for("0.0.0.0", ["pictures.example.org"], [SITE.upper()], api_key=KEY)
    assert access.is_foreign(SITE)
    for host in ("192.168.1.5:8000", "[fe80::1]:8000", "localhost", "Pictures.example.org"):
        access.check("GET", "/health", {"host": host})
    with pytest.raises(Exception, match="allow the name with --allow-host"):
        access.check("GET", "/health", {"host": "evil.example"})


@pytest.mark.parametrize(("host", "name"), [("a:1", "a"), ("[::1]:80", "::1"), ("A", "a"), ("", "")])
def test_a_port_is_no_part_of_a_name(host, name):
    assert host_name(host) == name


@pytest.mark.parametrize(
    "wrong", [{"api_key": "short"}, {"api_key": "ü" * 20}, {"api_key": "long enough\n"}, {"origins": {"example.org"}}]
)
def test_access_that_makes_no_sense_is_a_sentence(wrong):
    with pytest.raises(ValueError, match=r"the API key must|an origin must"):
        Access(**wrong)


def test_the_key_is_in_no_text_of_the_access():
    assert KEY not in repr(Access(api_key=KEY))


@pytest.mark.parametrize("head", [b"\x16\x03\x01 no HTTP\r\n\r\n", b"GET / HTTP/1.1\r\nCookie: " + b"x" * 500_000])
def test_what_is_no_http_or_has_endless_headers_is_answered_and_closed(open_server, head):
    with open_server.connect() as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("path", ["/", "/embed", "/explain", "/info"])
def test_the_browsers_question_before_a_request_needs_no_key(locked_server, path):
    assert locked_server.ask("OPTIONS", path, Origin=SITE, Access_Control_Request_Method="POST").status == 204
    assert locked_server.ask("OPTIONS", path).status == 405
    answer = locked_server.post("/explain", DIGIT, Origin=SITE, Authorization=f"Bearer {KEY}")
    assert "X-Label" in answer.headers["access-control-expose-headers"]
