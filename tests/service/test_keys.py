"""Who may call what: every route has a scope, keys can be exchanged, and secrets stay secret."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount
from starlette.testclient import TestClient

from service import keys
from service.app import create_app
from service.keys import ApiKeys, KeysMalformed, needed, parse
from service.settings import Settings
from tests.service.operators import PNG, operated
from tests.service.pictures import encode, grey
from tests.service.test_score_bad_input import refused

SECRETS = {"infer": "infer-secret-000001", "metrics": "metrics-secret-0001"}
SECRETS |= {"admin": "admin-secret-000001", "both": "both-secret-0000001"}
FILE = f"""
# who may do what
camera-7:infer:{SECRETS["infer"]}
prometheus:metrics:sha256:{hashlib.sha256(SECRETS["metrics"].encode()).hexdigest()}

ops : admin : {SECRETS["admin"]}
dashboard:infer,metrics:{SECRETS["both"]}
"""
OPEN = {
    "/", "/docs", "/openapi.json", "/favicon.ico", "/livez", "/readyz", "/healthz",
    "/v2/health/live", "/v2/health/ready",
}  # fmt: skip
READING = {"GET", "HEAD"}


def routes() -> list[tuple[str, str]]:
    """(method, path) of everything the app answers, with placeholders filled in."""
    found = []
    for context in iter_route_contexts(create_app(Settings()).routes):
        if isinstance(context.original_route, Mount):
            found.append(("GET", f"{context.original_route.path}/file.js"))
            continue
        path = (context.path or "").replace("{", "").replace("}", "")
        found += [(method, path) for method in sorted(context.methods or ())]
    return found


def scope_of(method: str, path: str) -> str:
    """What the specification says, in words of its own."""
    if path in OPEN or path.startswith(("/static/", "/docs/files/")):
        return "open"
    if path == "/metrics":
        return "metrics"
    if path.startswith("/models") and method not in READING:
        return "admin"
    if path.startswith("/v2/repository/") and path != "/v2/repository/index":
        return "admin"
    return "infer"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(FILE)
    return path


@pytest.fixture
def guarded(two_models: Path, file: Path) -> Iterator[TestClient]:
    settings = Settings(models_dir=two_models, threads=1, api_keys_file=file)
    with TestClient(create_app(settings)) as client:
        yield client


def test_every_route_asks_for_the_scope_it_should() -> None:
    found = routes()
    assert ("POST", "/score") in found
    assert ("PUT", "/models/name/aliases/alias") in found
    assert ("GET", "/docs/files/file.js") in found
    for method, path in found:
        # an "undecided" here is a new route: give it a scope in service/keys.py
        assert needed(method, path) == scope_of(method, path), f"{method} {path}"


@pytest.mark.parametrize("sent", [None, "wrong", "infer", "metrics", "admin", "both"])
def test_each_route_lets_in_those_with_its_scope_and_nobody_else(
    guarded: TestClient, sent: str | None
) -> None:
    headers = {} if sent is None else {"X-API-Key": SECRETS.get(sent, "a key nobody has")}
    may = {"infer": {"infer"}, "metrics": {"metrics"}, "both": {"infer", "metrics"}}
    may |= {"admin": {"infer", "metrics", "admin"}}
    for method, path in routes():
        need = scope_of(method, path)
        status = guarded.request(method, path, headers=headers).status_code
        if need == "open" or need in may.get(str(sent), set()):
            assert status not in (401, 403), f"{method} {path}"
        else:
            assert status == (403 if sent in may else 401), f"{method} {path}"


def test_a_refusal_says_what_to_send_or_what_is_missing(guarded: TestClient) -> None:
    for headers in ({}, {"X-API-Key": "nobody's"}, {"Authorization": "Basic YTpi"}):
        response = guarded.get("/models", headers=headers)
        refused(response, 401)
        assert response.headers["WWW-Authenticate"] == "Bearer"
    refused(guarded.get("/models"), 401, "X-API-Key", "Bearer")
    response = guarded.get("/metrics", headers={"X-API-Key": SECRETS["infer"]})
    refused(response, 403, "metrics", "camera-7")
    assert SECRETS["infer"] not in response.text
    refused(guarded.get("/nowhere"), 401)
    refused(guarded.get("/nowhere", headers={"X-API-Key": SECRETS["infer"]}), 403, "admin")
    refused(guarded.get("/nowhere", headers={"X-API-Key": SECRETS["admin"]}), 404)
    text = guarded.get("/metrics", headers={"X-API-Key": SECRETS["both"]}).text
    assert 'anomaly_requests_rejected_total{reason="unauthenticated"} 5.0' in text
    assert 'anomaly_requests_rejected_total{reason="forbidden"} 2.0' in text


def test_a_key_is_taken_from_either_header(guarded: TestClient) -> None:
    secret = SECRETS["infer"]
    for headers in (
        {"X-API-Key": secret},
        {"Authorization": f"Bearer {secret}"},
        {"authorization": f"bearer  {secret}"},
        {"X-API-Key": secret, "Authorization": "Bearer another"},
    ):
        assert guarded.get("/models", headers=headers).status_code == 200
    refused(guarded.get("/models", headers={"X-API-Key": "no", "Authorization": secret}), 401)


def test_without_keys_all_is_open_but_what_changes_something(client: TestClient) -> None:
    for method, path in routes():
        response = client.request(method, path)
        if scope_of(method, path) == "admin":
            refused(response, 403, "ANOMALY_API_KEYS_FILE")
        else:
            assert response.status_code not in (401, 403), f"{method} {path}"


def test_a_caller_is_logged_by_name_and_never_by_secret(
    guarded: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        headers = PNG | {"X-API-Key": SECRETS["infer"]}
        guarded.post("/score", content=encode(grey(0)), headers=headers)
        guarded.get("/models", headers={"X-API-Key": "sent-by-mistake-123"})
    callers = [r.fields["caller"] for r in caplog.records if hasattr(r, "fields")]
    assert callers == ["camera-7", None]
    assert not any(s in str(vars(r)) for r in caplog.records for s in SECRETS.values())
    assert "sent-by-mistake" not in str([vars(r) for r in caplog.records])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("camera:infer", ("line 1", "name:scope")),
        ("# none\n\n", ("no key",)),
        ("a:infer:a-long-enough-s3cr3t\nb:inferr:b-long-enough-s3cr3t", ("line 2", "infer, metr")),
        ("a::a-long-enough-s3cr3t", ("line 1", "scope")),
        ("a b:infer:a-long-enough-s3cr3t", ("line 1", "name")),
        ("a:infer:short-s3cr3t", ("line 1", "16")),
        ("a:infer:s3cr3t with a blank", ("line 1", "visible")),
        ("a:infer:sha256:s3cr3t", ("line 1", "64")),
        ("a:infer:a-long-enough-s3cr3t\na:admin:b-long-enough-s3cr3t", ("line 2", "'a'")),
        ("a:infer:a-long-enough-s3cr3t\nb:admin:a-long-enough-s3cr3t", ("line 2", "'a'")),
    ],
)
def test_a_malformed_file_ends_the_start_by_file_and_line_and_never_shows_a_secret(
    tmp_path: Path,
    text: str,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from service.__main__ import main

    path = tmp_path / "keys"
    path.write_text(text)
    monkeypatch.setenv("ANOMALY_API_KEYS_FILE", str(path))
    with pytest.raises(KeysMalformed):
        create_app(Settings())
    assert main([]) == 2
    said = capsys.readouterr().err
    for word in ("ANOMALY_API_KEYS_FILE", str(path), *words):
        assert word in said
    assert "s3cr3t" not in said


def test_a_file_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(KeysMalformed, match="No such file"):
        create_app(Settings(api_keys_file=tmp_path / "none"))


def test_keys_are_exchanged_without_a_restart_and_a_broken_file_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr(keys, "monotonic", lambda: now)
    path = tmp_path / "keys"
    path.write_text("a:infer:the-first-secret-1")
    held = ApiKeys(path)

    def replace(text: str) -> None:
        new = tmp_path / "new"
        new.write_text(text)
        new.replace(path)

    def name(secret: str) -> str | None:
        key = held.find(secret.encode())
        return key and key.name

    replace("b:infer:the-second-secret-2")
    assert name("the-first-secret-1") == "a"  # looked at once a second
    now += 1.1
    assert (name("the-first-secret-1"), name("the-second-secret-2")) == (None, "b")
    for broken in ("b:nonsense", ""):
        replace(broken)
        now += 1.1
        assert name("the-second-secret-2") == "b"
    path.unlink()
    now += 1.1
    assert name("the-second-secret-2") == "b"
    assert caplog.text.count("stay in force") == 3
    assert "nonsense" not in caplog.text


def test_keys_may_come_from_the_environment_alone_or_beside_a_file(tmp_path: Path) -> None:
    inline = "a:infer:the-first-secret-1; b:admin:the-second-secret-2;"
    held = ApiKeys.of(Settings(api_keys=inline))
    assert held.find(b"the-second-secret-2") is not None
    path = tmp_path / "keys"
    path.write_text("c:infer:the-third-secret-33")
    both = ApiKeys.of(Settings(api_keys=inline, api_keys_file=path))
    assert [both.find(s) is not None for s in (b"the-first-secret-1", b"the-third-secret-33")]
    assert "secret" not in repr(Settings(api_keys=inline))
    with pytest.raises(KeysMalformed, match="no key"):
        ApiKeys(inline=" ")
    path.write_text("a:infer:the-third-secret-33")
    with pytest.raises(KeysMalformed, match="'a'"):
        ApiKeys(path, inline)


def test_a_stored_digest_and_a_stored_secret_admit_the_same() -> None:
    digest = hashlib.sha256(b"the-first-secret-1").hexdigest()
    (stored,) = parse([f"a:infer:sha256:{digest}"], "here")
    (plain,) = parse(["a:infer:the-first-secret-1"], "here")
    assert stored == plain
    assert "the-first" not in repr(plain)


def test_the_digest_itself_opens_nothing(two_models: Path) -> None:
    digest = hashlib.sha256(b"operators-secret-0001").hexdigest()
    with operated(two_models) as client:
        for sent in (digest, f"sha256:{digest}"):
            refused(client.get("/models", headers={"X-API-Key": sent}), 401)
