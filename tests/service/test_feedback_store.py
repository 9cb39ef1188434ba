"""Feedback that must not get lost, and memory that must not be noticed: files, processes, Redis."""

import asyncio
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.client import AsyncClient
from service.contract.errors import DeadlinePassed
from service.feedback.memory import Memory
from service.feedback.records import Answered, Label, item_facts, item_of
from service.feedback.sqlite_file import SqliteFile
from service.feedback.store import FileStore
from service.interruption import deadline
from tests.artifacts import publish_image, set_active
from tests.redis_server import redis_server
from tests.service.conftest import Start
from tests.service.pictures import encode, grey
from tests.service.test_feedback import say, score, use
from tests.service.test_process import serving
from tests.service.test_score_bad_input import refused

PNG = {"Content-Type": "image/png"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    publish_image(root)
    set_active(root, image="bright/1")
    return root


def post(base: str, path: str, request_id: str, **content: object) -> httpx.Response:
    headers = {"X-Request-ID": request_id} | (PNG if "content" in content else {})
    return httpx.post(f"{base}{path}", headers=headers, timeout=30, **content)  # type: ignore[arg-type]


def test_what_was_acknowledged_is_there_after_a_kill(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log") as (process, base):
        assert post(base, "/score?map=none", "a", content=encode(grey(255))).status_code == 200
        label = {"request_id": "a", "label": "normal", "comment": "dust"}
        given = httpx.post(f"{base}/feedback", json=label)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert given.status_code == 200, given.text
    with serving(models, tmp_path / "log") as (process, base):
        assert httpx.get(f"{base}/feedback").json() == [given.json()]
        again = httpx.post(f"{base}/feedback", json=label | {"label": "anomalous"})
        assert again.json()["scored_at"] == given.json()["scored_at"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_any_worker_takes_feedback_on_what_another_answered(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", ANOMALY_WORKERS="2") as (_, base):
        until = time.monotonic() + 60
        for i in range(16):  # each over a connection of its own, so that both workers get some
            content = encode(grey(10 * i))
            while post(base, "/score?map=none", f"r{i}", content=content).status_code != 200:
                assert time.monotonic() < until  # the other worker may still load its models
                time.sleep(0.1)
        for i in range(16):
            label = {"request_id": f"r{i}", "label": "normal"}
            answer = httpx.post(f"{base}/feedback", json=label, timeout=30)
            assert answer.status_code == 200, answer.text
        assert len(httpx.get(f"{base}/feedback").json()) == 16

        async def from_asyncio() -> str:
            async with AsyncClient(base) as client:
                return (await client.feedback("r3", "normal", comment="so it is")).comment or ""

        assert asyncio.run(from_asyncio()) == "so it is"
        found = httpx.get(f"{base}/feedback/proposal?model=bright&fpr=0.1").json()
        assert (found["n"], found["labelled_normal"]) == (16, 16)


def nowhere(tmp_path: Path) -> Path:
    return tmp_path / "no such folder" / "feedback.sqlite"


def no_database(tmp_path: Path) -> Path:
    path = tmp_path / "feedback.sqlite"
    path.write_bytes(b"something else, that is long enough to be looked at" * 100)
    return path


@pytest.mark.parametrize("place", [nowhere, no_database])
def test_a_file_that_cannot_be_used_is_told_and_scores_go_on(
    start: Start, models: Path, tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    client = start(models, feedback_file=place(tmp_path))
    for i in range(3):
        score(client, f"r{i}")
    refused(say(client, "r0"), 503, "unavailable", "feedback.sqlite", "ANOMALY_FEEDBACK_FILE")
    score(client, "after")
    assert client.get("/readyz").status_code == 200


def test_a_full_disk_is_told_once_and_scores_go_on(models: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    file = str(tmp_path / "feedback.sqlite")
    settings = {"ANOMALY_FEEDBACK_FILE": file, "ANOMALY_LOG_LEVEL": "warning"}
    with serving(models, log, **settings) as (process, base):
        # no file that it writes may become larger: what a full disk looks like
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (120_000, 120_000))
        with httpx.Client(base_url=base, timeout=30) as client:
            until = time.monotonic() + 60
            status = 200
            while status == 200:
                assert time.monotonic() < until, log.read_text()
                files = [("image", encode(grey(i))) for i in range(60)]
                answer = client.post("/score?map=none", files=files)
                assert answer.status_code == 200
                label = {"request_id": answer.headers["X-Request-ID"], "label": "normal"}
                given = client.post("/feedback", json=label)
                status = given.status_code
            refused(given, 503, "feedback cannot be kept", "has room", file)
            for _ in range(10):
                assert client.post("/score?map=none", files=files).status_code == 200
            text = log.read_text()
            # once while it lasts: what little room there is may do for a while again
            assert text.count("are not remembered") <= text.count("remembered again") + 1
            assert "Traceback" not in text


def answered(request_id: str) -> Answered:
    facts = item_facts(1, None, [0.2], [0.6], ["normal"], ["ab"])
    return Answered(request_id, time.time_ns(), "bright", 1, "d", facts)


def test_a_busy_file_is_waited_for_and_readers_never_are(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "f.sqlite")
    file.add_answers([answered("first")])
    other = sqlite3.connect(file.path, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=file.add_answers, args=([answered("second")],))
    writer.start()
    found = file.find("first")
    assert found is not None
    other.rollback()
    writer.join(20)
    other.close()
    assert file.find("second") is not None
    file.close()


def test_a_caller_who_does_not_wait_takes_nothing_from_what_is_remembered(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "f.sqlite")
    file.add_answers([answered("before")])

    async def run() -> Answered | None:
        memory = Memory(FileStore(file))
        found = await memory.find("before")
        assert found is not None
        label = Label("before", 0, "normal", None, *found[2:5], **item_of(found, 0)._asdict(),
                      scored_at_ns=found.at_ns, recorded_at_ns=1)  # fmt: skip
        other = sqlite3.connect(file.path)
        other.execute("BEGIN IMMEDIATE")
        labelling = asyncio.create_task(memory.store.add_label(label))  # waits for its turn
        await asyncio.sleep(0)
        memory.remember("of-another", "bright", 1, "d", answered("").facts)
        with pytest.raises(DeadlinePassed), deadline(0.05):
            await memory.find("before")
        other.rollback()
        other.close()
        await labelling
        found = await memory.find("of-another")
        await memory.close()
        return found

    assert asyncio.run(run()) is not None


def test_an_answer_kept_by_a_service_that_remembers_nothing_is_given_by_one_that_does(
    start: Start, models: Path, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as server:
        score(start(models, redis_url=server.url, feedback_ttl_s=0), "a", 51)
        client = start(models, redis_url=server.url)
        score(client, "own", 102)
        score(client, "cached", 51)
        assert say(client, "own").status_code == 200
        refused(say(client, "cached"), 404)
        assert 'anomaly_cache_requests_total{result="hit"} 1.0' in client.get("/metrics").text


def test_an_id_used_again_loses_no_answer_in_redis(
    start: Start, models: Path, tmp_path: Path
) -> None:
    publish_image(models, name="other")
    with redis_server(tmp_path) as server:
        client = start(models, redis_url=server.url, feedback_max_items=2)
        ids = ("same|1", "same")
        for id_ in ids:
            score(client, id_, 51)
            assert say(client, id_, "normal").json()["model"] == "bright"
        score(client, "same", 102, "&model=other")
        assert say(client, "same").json()["model"] == "other"
        proposals = [
            client.get(f"/feedback/proposal?model={model}&fpr=0.6").json()
            for model in ("bright", "other")
        ]
        # of three the oldest is forgotten: "same|1"; of the others each counts where it is of
        assert [p.get("answers") for p in proposals] == [1, None]
        assert "there are 0" in proposals[1]["detail"]  # it is labelled anomalous
        refused(say(client, "same|1"), 404)
        score(client, "last", 52)  # forgets the first of "same", not the last
        assert say(client, "last").status_code == 200
        assert say(client, "same", "normal").json()["model"] == "other"
        found = client.get("/feedback/proposal?model=other&fpr=0.6").json()
        assert (found["answers"], found["labelled_normal"]) == (1, 1)


def test_replicas_share_feedback_through_redis_which_delays_no_score_when_it_is_gone(
    start: Start, models: Path, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as server:
        one, other = (start(models, redis_url=server.url) for _ in range(2))
        score(one, "a", 51)
        assert say(other, "a", "normal").json()["raw_score"] == pytest.approx(0.2)
        score(other, "a", 102)  # the id comes again
        assert say(other, "a").json()["raw_score"] == pytest.approx(0.4)
        assert say(one, "a").json()["raw_score"] == pytest.approx(0.4)
        listed = one.get("/feedback").json()
        assert [f["label"] for f in listed] == ["normal", "anomalous"]
        assert say(one, "a", "normal").status_code == 200
        assert len(one.get("/feedback?limit=1").json()) == 1
        assert [f["label"] for f in other.get("/feedback").json()] == ["normal", "normal"]
        assert other.get("/feedback?model=sensors").json() == []
        use(one, [i / 400 for i in range(150)], "many")
        for client in (one, other):
            found = client.get("/feedback/proposal?model=bright&fpr=0.05")
            assert found.status_code == 200, found.text
        assert found.json()["distinct_items"] == 150 + 1  # 51 / 255 is 80 / 400
        with server.client() as direct:
            direct.config_set("appendonly", "no")
            lasting = [k for k in direct.keys("anomaly:feedback*") if direct.ttl(k) != -1]
            brief = [k for k in direct.keys("anomaly:answered*") if direct.ttl(k) < 1]
            assert (lasting, brief) == ([], [])
        server.kill()
        began = time.monotonic()
        score(one, "b")
        assert time.monotonic() - began < 5
        refused(say(one, "a"), 503, "Redis")
        refused(one.get("/feedback"), 503, "Redis")


def test_redis_gives_back_every_label(start: Start, models: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        client = start(models, redis_url=server.url)
        use(client, [i / 400 for i in range(100)], "r")
        labels = [{"request_id": f"r-{i // 50}", "index": i % 50} for i in range(100)]
        for label in labels:
            assert client.post("/feedback", json=label | {"label": "normal"}).status_code == 200
        listed = client.get("/feedback").json()
        assert [(f["request_id"], f["index"]) for f in listed] == [
            (a["request_id"], a["index"]) for a in labels
        ]


def test_in_redis_too_the_oldest_answers_go_first(
    start: Start, models: Path, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as server:
        client = start(models, redis_url=server.url, feedback_max_items=100)
        for name in ("first", "second", "third"):
            use(client, [i / 400 for i in range(50)], name)
            assert say(client, f"{name}-0").status_code == 200
        refused(say(client, "first-0"), 404)
        assert say(client, "second-0").status_code == 200
        assert client.get("/feedback/proposal?model=bright&fpr=0.1").json()["answers"] == 2
        with server.client() as direct:
            assert len(direct.keys("anomaly:answered:*")) == 2
            for key in direct.keys("anomaly:answered:*"):
                direct.set(key, b"rubbish")
        refused(say(client, "third-0"), 404)
