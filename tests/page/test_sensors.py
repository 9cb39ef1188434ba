"""A csv of sensor rows on the page: the chart, a window, what it comes from."""

import base64
import re

import httpx
import numpy as np
from playwright.sync_api import Page, Route, expect

from tests.page.conftest import Open
from tests.page.pictures import EXAMPLES, choose, sensor_csv


def chosen(page: Page) -> int:
    return int(page.locator("#chart").get_attribute("aria-valuenow") or -1)


def click_at(page: Page, row: int, rows: int) -> None:
    """Clicks the chart where a row is."""
    page.locator("#chart").scroll_into_view_if_needed()
    box = page.locator("#chart").bounding_box()
    assert box is not None
    left, right = 128, 10  # the margins of the chart
    x = left + (row / rows) * (box["width"] - left - right)
    page.locator("#chart").click(position={"x": x, "y": 60})


def test_the_turbine_shows_its_scores_over_time_and_a_click_what_they_come_from(
    shipped: str, open_page: Open
) -> None:
    text = (EXAMPLES / "turbine.csv").read_bytes()
    headers = {"Content-Type": "text/csv"}
    answer = httpx.post(
        f"{shipped}/score/timeseries?map=float32", content=text, headers=headers
    ).json()
    page = open_page(shipped)
    choose(page, [EXAMPLES / "turbine.csv"])
    expect(page.locator("#series-size")).to_have_text("300 rows · 265 windows")
    expect(page.locator("#chart .threshold")).to_have_count(1)
    click_at(page, 100, 300)
    result = answer["results"][chosen(page)]
    assert abs((result["start"] + result["end"]) / 2 - 100) <= 1
    names = page.locator("#shares th").all_inner_texts()
    assert names == [c["column"] for c in result["contributions"]]
    first = page.locator("#shares .number").first
    expect(first).to_have_text(f"{result['contributions'][0]['share']:.1%}".replace("%", " %"))
    # the residuals, read again from the rows of this window alone, are those of the whole recording
    expect(page.locator("#shares-table")).to_have_attribute("data-window", str(result["index"]))
    raw = np.frombuffer(base64.b64decode(result["residual_map"]["data"]), "<f4").reshape(26, 26)
    model = httpx.get(f"{shipped}/models/turbine-iae-lstm-kl/versions/1").json()
    columns = [c["name"] for c in model["input"]["columns"]]
    peak = result["start"] + int(raw[:, columns.index(names[0])].argmax())
    label = page.locator("#shares canvas").first.get_attribute("aria-label")
    assert label is not None
    assert label.endswith(f"at row {peak}")
    expect(page.locator("#window-name")).to_contain_text("UTC to")


def test_windows_are_walked_through_by_keys_and_stand_in_a_table(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    choose(page, [sensor_csv(60, 40)])
    chart = page.get_by_role("slider", name="Window")
    expect(chart).to_have_attribute("aria-valuemax", "27")
    chart.focus()
    page.keyboard.press("Home")
    said = "Window 1 of 28, rows 1 to 4, 2026-01-01 00:01 UTC: score 0."
    expect(chart).to_have_attribute("aria-valuetext", re.compile(re.escape(said)))
    page.keyboard.press("ArrowRight")
    assert chosen(page) == 1
    page.keyboard.press("End")
    expect(page.locator("#window-decision")).to_have_text("▲ Anomalous")
    expect(page.locator("#shares th").first).to_have_text("power")
    page.get_by_text("Windows as a table").click()
    expect(page.locator("#windows-table tr")).to_have_count(28)
    expect(page.locator("#windows-table tr").last).to_contain_text("Anomalous")


def test_windows_that_cannot_be_scored_say_why(small: str, open_page: Open) -> None:
    file = sensor_csv(60, 60)
    lines = file["buffer"].decode().splitlines()
    del lines[30:35]  # which leaves a gap in time
    page = open_page(small)
    choose(page, [{**file, "buffer": "\n".join(lines).encode()}])
    expect(page.locator("#chart .gap").first).to_be_visible()
    expect(page.locator("#gap-legend")).to_be_visible()
    alphas = page.locator("#sensor-cells").evaluate(
        """c => [...c.getContext("2d").getImageData(0, 0, c.width, 1).data]
            .filter((_, i) => i % 4 === 3)"""
    )
    assert {0, 255} == set(alphas)  # clear where there are no shares, not the colour of zero
    expect(page.locator("#unscored")).to_have_text(str(alphas.count(0)))
    expect(page.locator("#unscored-why")).to_have_text(f"of {len(alphas)} not scorable")
    expect(page.locator("#flagged-of")).to_have_text(f"of {alphas.count(255)} flagged")
    page.get_by_text("Windows as a table").click()
    expect(page.locator("#windows-table")).to_contain_text("Not scorable: time gap")


def test_a_csv_of_wrong_columns_shows_what_is_wrong_and_another_can_follow(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    choose(page, [{"name": "a.csv", "mimeType": "text/csv", "buffer": b"power,fog\n1,2\n"}])
    expect(page.locator("#series-problem")).to_contain_text("unknown column 'fog'")
    expect(page.locator("#series-problem")).to_contain_text("missing column 'wind'")
    expect(page.locator("#window")).to_be_hidden()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()  # it would not change
    choose(page, [sensor_csv(2, 2)])
    told = re.compile(r"2 rows were sent; one window needs 6 \(4 \+ 2 for smoothing\) · HTTP 422")
    expect(page.locator("#series-problem")).to_have_text(told)  # and no second time in other words
    choose(page, [sensor_csv(60, 60)])
    expect(page.locator("#series-problem")).to_be_hidden()
    expect(page.locator("#chart .scores")).to_be_visible()
    expect(page.locator("#window")).to_be_visible()


def test_what_may_pass_can_be_tried_again(small: str, open_page: Open) -> None:
    page = open_page(small)
    again = page.get_by_role("button", name="Try again")
    answers = [(500, True), (503, True), (429, True), (413, False), (415, False), (503, True)]

    def refuse(route: Route) -> None:
        route.fulfill(status=answers[0][0], json={"detail": f"refused: {answers[0][0]}"})

    page.route("**/score/timeseries*", refuse)
    while answers:
        status, may_pass = answers[0]
        choose(page, [sensor_csv(60, 60)])
        expect(page.locator("#series-problem")).to_contain_text(f"refused: {status}")
        expect(again).to_be_visible(visible=may_pass)
        answers.pop(0)
    page.unroute("**/score/timeseries*")
    again.click()
    expect(again).to_be_hidden()
    expect(page.locator("#chart .scores")).to_be_visible()


def test_rows_between_windows_can_be_chosen(small: str, open_page: Open) -> None:
    page = open_page(small)
    choose(page, [sensor_csv(60, 60)])
    expect(page.locator("#series-size")).to_have_text("60 rows · 28 windows")
    page.get_by_label("Rows between windows").fill("10")
    choose(page, [sensor_csv(60, 60)])
    expect(page.locator("#series-size")).to_have_text("60 rows · 6 windows")
