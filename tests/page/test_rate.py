"""The slider of the false-alarm rate: what it flags is what the service would."""

import httpx
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.pictures import choose, level_files, slide

LEVELS = [0, 20, 60, 100, 110, 120, 124, 126, 128, 250]


def shown_rate(page: Page) -> float:
    """The rate, in all its digits, as the command on the page sends it."""
    url = httpx.URL(page.locator("#command").inner_text().rpartition("'")[0].rpartition("'")[2])
    return float(url.params.get("fpr", 0.01))


def test_what_is_flagged_at_a_rate_is_what_the_service_flags_at_it(
    small: str, open_page: Open
) -> None:
    files = level_files(LEVELS)
    page = open_page(small)
    choose(page, files)
    expect(page.locator("#flagged-of")).to_have_text("of 10 flagged")
    page.locator("#order").select_option("given")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    parts = [("image", (f["name"], f["buffer"], f["mimeType"])) for f in files]
    counts = set()
    for value in (0, 200, 500, 800, 1000):
        slide(page, "#rate-input", value)
        query = {"map": "none", "fpr": shown_rate(page)}
        answer = httpx.post(f"{small}/score", params=query, files=parts).json()
        expected = [result["decision"] for result in answer["results"]]
        tiles = page.locator(".tile")
        assert tiles.evaluate_all("tiles => tiles.map(t => t.dataset.decision)") == expected
        assert page.locator("#flagged").inner_text() == str(expected.count("anomalous"))
        assert page.locator("#review-count").inner_text() == str(expected.count("review"))
        counts.add(expected.count("anomalous"))
    assert len(counts) >= 3
    assert not [url for url in asked if "score" in url]


def test_the_rate_is_bounded_by_the_calibration_and_goes_back_to_the_models(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    choose(page, level_files([250]))
    slide(page, "#rate-input", 1000)  # 199 calibration scores promise 1 / 200 at the finest
    expect(page.locator("#rate-value")).to_have_text("0.005")
    expect(page.locator("#alarms")).to_have_text("5")
    slide(page, "#rate-input", 0)
    expect(page.locator("#alarms")).to_have_text("500")
    page.get_by_role("button", name="Back to the model's rate").click()
    expect(page.locator("#rate-value")).to_have_text("0.01")
    expect(page.locator("#alarms")).to_have_text("10")
