"""The cache, seen from outside: the same answers, sooner; Redis is never noticed."""

from pathlib import Path

import pytest
import redis
from starlette.testclient import TestClient

from tests.redis_server import redis_server
from tests.service.conftest import Start
from tests.service.pictures import encode, grey

PNG = {"Content-Type": "image/png"}
ROWS = {"rows": [[float(i % 7), 1.0, float(i % 5)] for i in range(10)]}


def counted(client: TestClient, result: str) -> float:
    line = f'anomaly_cache_requests_total{{result="{result}"}} '
    found = [row for row in client.get("/metrics").text.splitlines() if row.startswith(line)]
    return float(found[0].removeprefix(line)) if found else 0.0


def score(client: TestClient, level: int = 51, query: str = "") -> dict[str, object]:
    answer = client.post(f"/score{query}", content=encode(grey(level)), headers=PNG)
    assert answer.status_code == 200, answer.text
    body: dict[str, object] = answer.json()
    assert body.pop("request_id") == answer.headers["X-Request-ID"]
    return body


def test_a_repeated_request_is_answered_from_memory_and_still_counted(start: Start) -> None:
    client = start()
    assert score(client) == score(client)
    both = [client.post("/score/timeseries", json=ROWS).json() for _ in range(2)]
    assert both[0].pop("request_id") != both[1].pop("request_id")
    assert both[0] == both[1]
    assert (counted(client, "hit"), counted(client, "miss")) == (2, 2)
    metrics = client.get("/metrics").text
    assert 'anomaly_items_total{decision="normal",model="bright",version="1"} 2.0' in metrics


def test_multipart_bodies_are_the_same_whatever_their_boundary(start: Start) -> None:
    client = start()
    files = [("image", encode(grey(51))), ("image", encode(grey(255)))]
    for _ in range(2):
        assert client.post("/score", files=files).status_code == 200
    assert counted(client, "hit") == 1


@pytest.mark.parametrize(
    "query", ["?map=none", "?map=float32", "?fpr=0.05", "?fdr=0.05", "?version=1&map=heatmap"]
)
def test_another_question_gets_another_answer(start: Start, query: str) -> None:
    client = start()
    score(client)
    score(client, query=query)
    assert counted(client, "hit") == 0


def test_what_holds_an_error_is_computed_anew(start: Start) -> None:
    client = start()
    files = [("image", encode(grey(51))), ("image", b"no image at all")]
    answers = [client.post("/score", files=files) for _ in range(2)]
    for answer in answers:
        problem = answer.json()["results"][1]["error"]
        assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert counted(client, "hit") == 0


def test_redis_shared_lost_hanging_full_or_filled_with_rubbish_changes_no_score(
    start: Start, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as server:
        one, other = start(redis_url=server.url), start(redis_url=server.url)
        first = score(one)
        for _ in range(100):  # it is written in the background
            if counted(other, "hit"):
                break
            assert score(other) == first
        assert counted(other, "hit")
        with redis.Redis.from_url(server.url) as direct:
            keys = direct.keys("anomaly:result:*")
            assert len(keys) == 1
            direct.set(keys[0], b"rubbish")
        assert score(other) == first
        server.pause()
        assert [score(one) for _ in range(3)] == [first] * 3
        server.go_on()
        server.fill()
        assert score(one) == first
        assert score(one, 102) != first
        server.kill()
        assert [score(one) for _ in range(3)] == [first] * 3


def test_one_request_too_many_is_told_when_to_come_back(start: Start) -> None:
    client = start(rate_limit="2/min")
    content = encode(grey(51))
    answers = [client.post("/score", content=content, headers=PNG) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert int(answers[2].headers["Retry-After"]) >= 1
    assert answers[2].json()["type"].endswith("rate-limited")
    assert client.post("/score/timeseries", json=ROWS).status_code == 429
    assert client.get("/models").status_code == 200
