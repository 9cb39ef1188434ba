"""Hostile bodies: whatever comes, the answer is a score or says what is wrong with it."""

import random

import pytest
from starlette.testclient import TestClient

from tests.service.mutations import Sample, samples, spoiled

ROWS = "\n".join(f"{i % 7},{3 + i % 2},{0.5 * (i % 3)}" for i in range(12))
SAMPLES = samples("bright", "sensors", ["power", "wind", "pitch"], ROWS)
EACH = 150
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # Pillow, of files it then refuses
]


def _post(client: TestClient, sample: Sample) -> tuple[int, str]:
    answer = client.post(sample.path, content=sample.body, headers=sample.headers)
    return answer.status_code, answer.text[:300]


@pytest.mark.parametrize(
    "sample", SAMPLES, ids=lambda s: f"{s.kind}-{s.headers['Content-Type'][:15]}"
)
def test_the_bodies_that_are_spoiled_here_are_answered_as_they_are(
    client: TestClient, sample: Sample
) -> None:
    status, text = _post(client, sample)
    assert status == 200, text


@pytest.mark.parametrize(
    "sample", SAMPLES, ids=lambda s: f"{s.kind}-{s.headers['Content-Type'][:15]}"
)
def test_no_spoiled_body_is_an_internal_error(client: TestClient, sample: Sample) -> None:
    rng = random.Random(sample.path + str(len(sample.body)))
    for _ in range(EACH):
        bad = spoiled(sample, SAMPLES, rng)
        status, text = _post(client, bad)
        assert status < 500, f"{status} {text}: {bad.path} {bad.headers} {bad.body[:200]!r}"
