"""By keyboard, by screen reader, on small screens, in the dark."""

import re
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.pictures import choose, decision, level_files, png, sensor_csv

Scheme = Literal["light", "dark"]
STATES = ("nothing", "images", "sensors", "errors")


def grave(page: Page) -> list[str]:
    """What axe-core finds that hinders people seriously."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {node['html'][:160]} {node['failureSummary']}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


def filled(page: Page, what: str) -> None:
    """The page in one of the states it is seen in."""
    expect(page.locator(".card").first).to_be_visible()
    if what == "images":
        choose(page, [*level_files([10, 110, 250]), png("broken.png", b"no image")])
        expect(page.locator("#flagged-of")).to_have_text("of 3 flagged")
        page.locator(".tile", has_text="part-001").click()
    elif what == "sensors":
        choose(page, [sensor_csv(60, 40)])
        expect(page.locator("#shares-table")).to_have_attribute("data-window", re.compile(r"\d+"))
        page.get_by_text("Windows as a table").click()
    elif what == "errors":
        choose(page, [png("broken.png", b"no image")])
        expect(page.locator("#viewer-problem")).to_be_visible()


def cleared(page: Page) -> None:
    """The page with nothing on it again."""
    clear = page.get_by_role("button", name="Clear")
    if clear.is_visible():
        clear.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hinders_people_seriously(small: str, open_page: Open, scheme: Scheme) -> None:
    page = open_page(small, color_scheme=scheme, reduced_motion="reduce")
    for what in STATES:
        filled(page, what)
        assert grave(page) == [], what
        cleared(page)


def test_the_dark_page_is_dark(small: str, open_page: Open) -> None:
    def ground(scheme: Scheme) -> int:
        page = open_page(small, color_scheme=scheme)
        colour = page.locator("body").evaluate("b => getComputedStyle(b).backgroundColor")
        return sum(int(c) for c in colour[4:-1].split(", "))

    assert ground("dark") < 100
    assert ground("light") > 600


def test_a_narrow_screen_is_never_scrolled_sideways(small: str, open_page: Open) -> None:
    page = open_page(small, viewport={"width": 360, "height": 740})
    for what in STATES:
        filled(page, what)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, what
        cleared(page)


def test_the_head_of_the_page_is_one_line_on_a_narrow_screen(small: str, open_page: Open) -> None:
    page = open_page(small, viewport={"width": 360, "height": 740})
    expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    boxes = [page.locator(s).bounding_box() for s in (".brand", ".top nav", "#status")]
    middles = [box["y"] + box["height"] / 2 for box in boxes if box is not None]
    assert len(middles) == 3
    assert max(middles) - min(middles) < 4


def test_an_example_is_scored_and_judged_by_keyboard_alone(shipped: str, open_page: Open) -> None:
    page = open_page(shipped)
    expect(page.locator("#example-list button").first).to_be_visible()

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.locator(selector).evaluate("e => e === document.activeElement"):
                outline = page.locator(selector).evaluate("e => getComputedStyle(e).outlineStyle")
                assert outline == "solid", f"{selector} does not show that it has the focus"
                return
        pytest.fail(f"{selector} is not reached by Tab")

    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the results")).to_be_focused()
    tab_to("#example-list button >> nth=0")
    page.keyboard.press("Enter")
    expect(decision(page)).to_have_text("▲ Anomalous")
    expect(page.locator("#announcer")).to_have_text("1 of 1 images scored.")
    tab_to("#rate-input")
    for _ in range(5):
        page.keyboard.press("PageUp")
    expect(page.locator("#announcer")).to_contain_text("flags 0 of 1")
    expect(decision(page)).not_to_have_text("▲ Anomalous")
    tab_to("#opacity")
    page.keyboard.press("Home")
    expect(page.locator("#heat")).to_have_css("opacity", "0")
    tab_to("#outlines")
    page.keyboard.press("Space")
    expect(page.locator("#regions")).to_be_hidden()


def test_the_examples_fill_the_page(shipped: str, open_page: Open) -> None:
    page = open_page(shipped)
    buttons = page.locator("#example-list button")
    expect(buttons).to_have_count(6)
    buttons.filter(has_text="Bag").click()
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator("#flagged-of")).to_have_text("of 2 flagged")
    buttons.filter(has_text="turbine").click()
    expect(page.locator("#series-size")).to_contain_text("265 windows")
    expect(page.locator("#images")).to_be_hidden()


def test_the_documentation_draws_itself_within_its_policy(small: str, open_page: Open) -> None:
    page = open_page(f"{small}/docs")
    expect(page.locator(".opblock").first).to_be_visible()
    expect(page.locator(".title", has_text="Anomaly scoring")).to_be_visible()
    page.locator(".opblock", has_text="/livez").locator("button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table")).to_contain_text('"live": true')
