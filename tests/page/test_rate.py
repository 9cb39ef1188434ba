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


def test_arrow_keys_move_the_rate_one_step_from_the_models_own_and_back(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    choose(page, level_files([250]))
    expect(page.locator("#flagged-of")).to_have_text("of 1 flagged")
    slider, reset = page.locator("#rate-input"), page.locator("#rate-reset")
    slider.focus()
    default = int(slider.input_value())
    for key, value in (
        ("ArrowRight", default + 1),
        ("ArrowLeft", default),
        ("ArrowLeft", default - 1),
    ):
        page.keyboard.press(key)
        expect(slider).to_have_value(str(value))
        expect(reset).to_be_visible(visible=value != default)
    assert shown_rate(page) > 0.01


def test_a_hand_near_the_models_rate_sets_exactly_that(small: str, open_page: Open) -> None:
    page = open_page(small)
    choose(page, level_files([250]))
    expect(page.locator("#flagged-of")).to_have_text("of 1 flagged")
    slider = page.locator("#rate-input")
    default = int(slider.input_value())
    for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
        slider.press(key)
    expect(slider).to_have_value(str(default + 3))
    box = slider.bounding_box()
    assert box is not None
    y, thumb = box["y"] + box["height"] / 2, 20

    def x(value: float) -> float:
        return box["x"] + thumb / 2 + value / 1000 * (box["width"] - thumb)

    page.mouse.move(x(default + 3), y)
    page.mouse.down()
    page.mouse.move(x(default + 100), y)
    expect(page.locator("#rate-reset")).to_be_visible()
    page.mouse.move(x(default + 2), y)
    expect(page.locator("#rate-reset")).to_be_hidden()
    page.mouse.up()
    assert shown_rate(page) == 0.01


def test_a_model_that_knows_nothing_of_what_it_was_given_is_doubted(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    expect(page.locator("#title-image")).to_have_text("miniature bright")
    doubt = page.locator("#doubt")
    choose(page, level_files([250, 250]))
    expect(page.locator("#flagged-of")).to_have_text("of 2 flagged")
    expect(doubt).to_be_hidden()  # two are too few to say
    choose(page, level_files([250]))
    expect(doubt).to_have_text(
        "Nearly all are unlike anything bright was trained on. Is it the right model?"
    )
    choose(page, level_files([10]))  # three of four are less than 80 %
    expect(doubt).to_be_hidden()
    choose(page, level_files([250]))
    expect(doubt).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(doubt).to_be_hidden()
