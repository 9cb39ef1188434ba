"""Two hundred images: progress, stopping, going on, and limits the page is not told."""

import re
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, Route, expect

from tests.page.conftest import Open, apart
from tests.page.pictures import choose, level_files
from tests.service.test_process import serving

LEVELS = [int(v) for v in np.linspace(0, 250, 200)]


def done(page: Page) -> int:
    return page.locator(".tile .number").count()


def test_two_hundred_images_are_scored_with_progress_and_sorted_by_score(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    seen: list[int] = []

    def slowly(route: Route) -> None:
        seen.append(int(page.locator("#progress-bar").evaluate("bar => bar.value")))
        route.continue_()

    page.route(re.compile("/score"), slowly)
    choose(page, level_files(LEVELS))
    expect(page.locator("#flagged-of")).to_have_text("of 200 flagged")
    assert done(page) == 200
    assert len(seen) > 5  # in parts, the bar moving between them
    assert seen == sorted(seen)
    assert 0 < seen[-1] < 200
    first, second = (page.locator(".tile-name").nth(i).inner_text() for i in (0, 1))
    assert (first, second) == ("part-199.png", "part-198.png")
    page.locator("#order").select_option("given")
    assert page.locator(".tile-name").first.inner_text() == "part-000.png"
    expect(page.locator("#viewer-name")).to_have_text("part-199.png")  # the most unusual one
    page.get_by_role("button", name="Previous image").click()
    expect(page.locator("#viewer-name")).to_have_text("part-198.png")


def test_scoring_is_stopped_and_gone_on_with(small: str, open_page: Open) -> None:
    page = open_page(small)
    held: list[Route] = []

    def hold(route: Route) -> None:
        if len(held) < 2 and done(page) > 0:
            held.append(route)
        else:
            route.continue_()

    page.route(re.compile("/score"), hold)
    choose(page, level_files(LEVELS[:100]))
    expect(page.locator(".tile .number").first).to_be_visible()
    while not held:
        page.wait_for_timeout(20)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#progress-text")).to_contain_text("not sent")
    before = done(page)
    assert 0 < before < 100
    page.unroute(re.compile("/score"))
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#flagged-of")).to_have_text("of 100 flagged")
    expect(page.locator("#progress")).to_be_hidden()


def test_a_service_that_takes_less_at_once_gets_less_at_once(
    two_models: Path, open_page: Open, tmp_path: Path
) -> None:
    less = {"ANOMALY_MAX_IMAGES": "3", "ANOMALY_QUEUE_MAX_ITEMS": "4", **apart(tmp_path)}
    with serving(two_models, tmp_path / "log", **less) as (_, base):
        page = open_page(base)
        choose(page, level_files(LEVELS[:20]))
        expect(page.locator("#flagged-of")).to_have_text("of 20 flagged")
        expect(page.locator('.tile[data-decision="failed"]')).to_have_count(0)
