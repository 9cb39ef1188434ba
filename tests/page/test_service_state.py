"""What the page says of the service: away and back, not ready, asking for a key."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Route, expect

from tests.artifacts import publish_image, publish_vectors, set_active
from tests.page.conftest import Open, apart
from tests.page.pictures import choose, decision, level_files
from tests.service.test_process import free_port, serving

SECRET = "infer-secret-000001"


def test_a_service_that_goes_away_is_seen_and_one_that_is_back_scores_without_a_reload(
    two_models: Path, open_page: Open, tmp_path: Path
) -> None:
    with serving(two_models, tmp_path / "log", **apart(tmp_path)) as (process, base):
        page = open_page(base)
        status = page.locator("#status")
        expect(status).to_have_attribute("data-state", "ready")
        choose(page, level_files([250]))
        expect(decision(page)).to_have_text("▲ Anomalous")
        process.kill()
        process.wait()
        choose(page, level_files([10, 20]))
        expect(page.locator("#run-problem")).to_contain_text("did not answer")
        expect(status).to_have_attribute("data-state", "away")
        expect(page.locator("#status-word")).to_have_text("Service away")
        expect(decision(page)).to_have_text("▲ Anomalous")  # what is there stays
        with answering(two_models, tmp_path, int(base.rpartition(":")[2])):
            expect(status).to_have_attribute("data-state", "ready")
            page.get_by_role("button", name="Go on").click()
            expect(page.locator("#flagged-of")).to_have_text("of 3 flagged")
            expect(page.locator("#run-problem")).to_be_hidden()


def test_a_model_of_vectors_has_a_card_and_says_where_it_is_scored(
    open_page: Open, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    publish_image(models)
    publish_vectors(models)
    set_active(models, image="bright/1", vectors="part/1")
    with answering(models, tmp_path, free_port()) as base:
        page = open_page(base)
        expect(page.locator("#status")).to_have_attribute("data-state", "ready")
        card = page.locator(".card", has_text="part")
        expect(card).to_contain_text("default for vectors")
        expect(card).to_contain_text("vectors of 3 features; scored over HTTP")
        table = b"torque,current,heat\n1,2,3\n"
        choose(page, [{"name": "a.csv", "mimeType": "text/csv", "buffer": table}])
        expect(page.locator("#notice")).to_contain_text("POST /score/vectors")
        choose(page, level_files([250]))
        expect(decision(page)).to_have_text("▲ Anomalous")


def test_a_model_that_is_refused_is_named_with_the_reason(open_page: Open, tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish_image(models)
    publish_image(models, "dim")
    set_active(models, image="bright/1")
    (models / "dim" / "1" / "score.onnx").write_bytes(b"not what was published")
    with answering(models, tmp_path, free_port()) as base:
        page = open_page(base)
        expect(page.locator("#status")).to_have_attribute("data-state", "not-ready")
        page.locator("#status summary").click()
        expect(page.locator("#status-lines")).to_contain_text("score.onnx")
        expect(page.locator(".card", has_text="dim").locator(".problem")).to_contain_text("sha256")
        choose(page, level_files([250]))  # the others score all the same
        expect(decision(page)).to_have_text("▲ Anomalous")


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(
    two_models: Path, open_page: Open, tmp_path: Path
) -> None:
    keys = {"ANOMALY_API_KEYS": f"line-7:infer:{SECRET}", **apart(tmp_path)}
    with serving(two_models, tmp_path / "log", **keys) as (_, base):
        page = open_page(base)
        field = page.locator("#key-field")
        expect(field).to_be_focused()
        page.locator("#files").set_input_files(level_files([250]))  # kept until there is a key
        expect(page.locator("#notice")).to_contain_text("needs a key")
        field.fill("not the key of anyone")
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#key-detail")).to_have_text("This key is not known.")
        field.fill(SECRET)
        field.press("Enter")
        expect(field).to_be_hidden()
        expect(decision(page)).to_have_text("▲ Anomalous")
        expect(page.locator("#notice")).to_be_hidden()
        expect(page.locator("#command")).to_contain_text('"X-API-Key: $ANOMALY_API_KEY"')
        assert SECRET not in page.content()
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []


def test_of_models_chosen_in_quick_succession_the_last_one_scores(
    open_page: Open, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    for name in ("bright", "dim", "late"):
        publish_image(models, name)
    set_active(models, image="bright/1")
    with serving(models, tmp_path / "log", **apart(tmp_path)) as (_, base):
        page = open_page(base)
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        page.route("**/models/late/versions/1", hold)
        page.reload()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        choose(page, level_files([250]))
        model = page.locator("#model-image")
        for name in ("late", "dim"):
            model.select_option(name)
        facts = page.locator("#facts-list")
        expect(facts).to_contain_text("dim/1")
        for route in held:
            route.continue_()
        expect(page.locator(".card")).to_have_count(3)
        expect(facts).to_contain_text("dim/1")
        assert not [url for url in asked if "model=late" in url]


def test_another_version_made_active_scores_without_a_reload(
    open_page: Open, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    for version in (1, 2):
        publish_image(models, version=version)
    set_active(models, image="bright/1")
    keys = {"ANOMALY_API_KEYS": f"boss:admin:{SECRET}", **apart(tmp_path)}
    with serving(models, tmp_path / "log", **keys) as (_, base):
        page = open_page(base)
        page.locator("#key-field").fill(SECRET)
        page.locator("#key-field").press("Enter")
        choose(page, level_files([250]))
        facts = page.locator("#facts-list")
        expect(facts).to_contain_text("bright/1")
        put = httpx.put(
            f"{base}/models/bright/aliases/stable",
            json={"version": 2},
            headers={"X-API-Key": SECRET},
            timeout=60,
        )
        assert put.status_code == 200, put.text
        expect(page.locator(".card")).to_contain_text("Version 2")
        choose(page, level_files([10]))
        expect(facts).to_contain_text("bright/2")


def test_what_people_found_is_told_to_the_service_and_its_refusal_to_them(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    choose(page, level_files([250, 10]))
    expect(decision(page)).to_have_text("▲ Anomalous")
    page.get_by_role("button", name="Normal", exact=True).click()
    expect(page.locator(".feedback-note")).to_have_text("Recorded: normal.")
    (kept,) = httpx.get(f"{small}/feedback").json()
    assert (kept["label"], kept["decision"], kept["model"]) == ("normal", "anomalous", "bright")
    page.route("**/feedback", lambda route: route.fulfill(status=404, body="gone"))
    page.get_by_role("button", name="Anomalous", exact=True).click()
    expect(page.locator(".feedback-note")).to_contain_text("Not recorded")
    expect(page.get_by_role("button", name="Normal", exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )


@contextmanager
def answering(models: Path, folder: Path, port: int) -> Iterator[str]:
    """The address of a service on this port that answers, ready or not."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("ANOMALY_")}
    settings |= {"ANOMALY_MODELS_DIR": str(models), **apart(folder)}
    settings |= {"ANOMALY_PORT": str(port), "ANOMALY_THREADS": "1"}
    log = folder / "answering"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=settings, stderr=out)
    try:
        base = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{base}/livez")
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
        yield base
    finally:
        process.terminate()
        process.wait(30)
