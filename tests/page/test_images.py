"""Images on the page: decision, heatmap, regions, wrong files, feedback, what is taken away."""

import base64
import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.pictures import EXAMPLES, choose, decision, level_files, png, slide
from tests.service.pictures import encode, grey


def pixels(page: Page, canvas: str) -> np.ndarray:
    """What a canvas shows: uint8 [H, W, 4]."""
    url: str = page.locator(canvas).evaluate("c => c.toDataURL('image/png')")
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA")
    )


def test_an_uploaded_image_gets_a_decision_a_heatmap_and_its_regions(
    shipped: str, open_page: Open
) -> None:
    file = EXAMPLES / "digit-2.png"
    answer = httpx.post(f"{shipped}/score", files={"image": file.read_bytes()}).json()["results"][0]
    page = open_page(shipped)
    choose(page, [file])
    expect(decision(page)).to_have_text("▲ Anomalous")
    expect(page.locator("#facts-list")).to_contain_text(f"{answer['score']:.4f}"[:6])
    expect(page.locator("#facts-words")).to_contain_text("About 1 in 6")
    expect(page.locator("#regions .line")).to_have_count(len(answer["regions"]))
    first = page.locator("#regions .line").first
    assert first.get_attribute("x") == str(answer["regions"][0]["x"])
    expect(page.locator("#viewer")).to_have_attribute("data-shown", "0")
    assert pixels(page, "#heat")[..., 3].max() > 100


def test_the_overlay_at_full_opacity_is_the_heatmap_of_the_service(
    shipped: str, open_page: Open
) -> None:
    file = EXAMPLES / "tile-blowhole.png"
    query = {"model": "tiles-nln", "map": "heatmap"}
    answer = httpx.post(f"{shipped}/score", params=query, files={"image": file.read_bytes()}).json()
    theirs = base64.b64decode(answer["results"][0]["residual_map"]["data"])
    expected = np.asarray(Image.open(io.BytesIO(theirs))).astype(float)
    page = open_page(shipped)
    expect(page.locator("#model-image")).to_be_enabled()
    page.locator("#model-image").select_option("tiles-nln")
    choose(page, [file])
    expect(page.locator("#viewer")).to_have_attribute("data-shown", "0")
    base, heat = pixels(page, "#base").astype(float), pixels(page, "#heat").astype(float)
    alpha = heat[..., 3:] / 255
    shown = heat[..., :3] * alpha + base[..., :3] * (1 - alpha)
    assert np.abs(shown - expected).mean() < 1
    assert np.abs(shown - expected).max() < 12  # the map has 256 steps of its own maximum


def test_the_highest_regions_are_listed_highest_first(shipped: str, open_page: Open) -> None:
    files = {"image": (EXAMPLES / "tile-blowhole.png").read_bytes()}
    answer = httpx.post(f"{shipped}/score?model=tiles-nln", files=files).json()
    regions = sorted(answer["results"][0]["regions"], key=lambda r: -r["peak"])
    page = open_page(shipped)
    page.locator("#example-list button", has_text="blowhole").click()
    listed = page.locator("#facts-regions li")
    expect(listed).to_have_count(3)
    for line, region in zip(listed.all_inner_texts(), regions, strict=False):
        where = f"{region['width']} by {region['height']} px at x {region['x']}, y {region['y']}: "
        assert line.startswith(where)
    expect(page.locator("#facts-regions")).to_contain_text(f"{len(regions)} regions stand out")


def test_the_slider_of_the_heatmap_makes_it_lighter_and_regions_can_be_hidden(
    shipped: str, open_page: Open
) -> None:
    page = open_page(shipped)
    choose(page, [EXAMPLES / "digit-2.png"])
    expect(page.locator("#viewer")).to_have_attribute("data-shown", "0")
    slide(page, "#opacity", 100)
    full = page.locator("#stack").screenshot()
    slide(page, "#opacity", 0)
    expect(page.locator("#opacity-text")).to_have_text("0 %")
    expect(page.locator("#heat")).to_have_css("opacity", "0")
    assert page.locator("#stack").screenshot() != full
    page.get_by_role("checkbox", name="Regions").uncheck()
    expect(page.locator("#regions")).to_be_hidden()


def test_a_file_that_is_no_image_shows_what_the_service_says_of_it(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    choose(page, [png("notes.png", b"these are words")])
    expect(page.locator("#viewer-problem")).to_contain_text("allowed: PNG, JPEG, BMP, TIFF or WebP")
    expect(page.locator("#facts")).to_be_hidden()


def test_a_broken_file_among_several_has_its_error_in_place_and_the_others_their_scores(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    choose(page, [*level_files([20, 250]), png("broken.png", encode(grey(1))[:40])])
    expect(page.locator('.tile[data-decision="anomalous"]')).to_have_count(1)
    expect(page.locator('.tile[data-decision="normal"]')).to_have_count(1)
    page.locator(".tile", has_text="broken.png").click()
    expect(page.locator("#viewer-problem")).to_be_visible()
    expect(page.locator("#progress-text")).to_contain_text("2 of 3 scored · 1 could not be")


def test_names_of_files_are_text_wherever_they_stand(small: str, open_page: Open) -> None:
    name = "<img src=x onerror=alert(1)>'\"; $(id).png"
    page = open_page(small)
    page.on("dialog", lambda dialog: pytest.fail(f"the name was run: {dialog.message}"))
    choose(page, [png(name, encode(grey(20))), png("b.png", encode(grey(30)))])
    expect(page.locator(".tile-name", has_text=name)).to_be_visible()
    page.locator(".tile", has_text="onerror").click()
    expect(page.locator("#viewer-name")).to_have_text(name)
    assert page.locator("main img[src=x]").count() == 0


def test_the_command_on_the_page_gives_the_same_scores(
    small: str, open_page: Open, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on PATH: apt install curl")
    files = [*level_files([20, 110]), png('a "b"; it\'s, $x.png', encode(grey(250)))]
    for file in files:
        (tmp_path / file["name"]).write_bytes(file["buffer"])
    page = open_page(small)
    choose(page, files)
    expect(page.locator("#flagged-of")).to_have_text("of 3 flagged")
    slide(page, "#rate-input", 500)
    command = page.locator("#command").inner_text()
    assert "fpr=" in command
    ran = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    decisions = [r["decision"] for r in json.loads(ran.stdout)["results"]]
    assert decisions == ["normal", "review", "anomalous"]
    for name, found in zip(("part-000", "part-001", "it's"), decisions, strict=True):
        tile = page.locator(".tile", has_text=name)
        expect(tile).to_have_attribute("data-decision", found)


def test_results_are_taken_away_as_csv_and_json_and_a_name_is_no_formula(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    choose(page, [png("=1+1.png", encode(grey(250))), png("x.png", b"broken")])
    expect(page.locator("#flagged-of")).to_have_text("of 1 flagged")
    expect(page.locator('.tile[data-decision="failed"]')).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Results as csv").click()
    rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert [row["file"] for row in rows] == ["'=1+1.png", "x.png"]
    assert rows[0]["decision"] == "anomalous"
    assert float(rows[0]["p_value"]) == 1 / 200
    assert "not an image" in rows[1]["error"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Results as JSON").click()
    (first, second) = json.loads(download.value.path().read_text())
    assert first["file"] == "=1+1.png"
    assert first["raw_score"] == pytest.approx(250 / 255)
    assert second["problem"]["status"] == 415


def test_an_image_that_only_the_service_can_decode_is_shown_as_the_service_sees_it(
    small: str, open_page: Open
) -> None:
    page = open_page(small)
    tiff = encode(grey(200), "TIFF")
    choose(page, [{"name": "part.tiff", "mimeType": "image/tiff", "buffer": tiff}])
    expect(page.locator("#picture-note")).to_contain_text("comes from the service")
    assert pixels(page, "#base")[..., :3].max() > 0


def test_another_model_scores_the_files_at_hand_anew(shipped: str, open_page: Open) -> None:
    page = open_page(shipped)
    choose(page, [EXAMPLES / "digit-2.png"])
    expect(page.locator("#facts-list")).to_contain_text("digits-nln/1")
    page.locator("#model-image").select_option("fashion-iae-lstm-kl")
    expect(page.locator("#facts-list")).to_contain_text("fashion-iae-lstm-kl/1")
    expect(page.locator("#neighbours")).to_be_hidden()


def test_normal_neighbours_are_shown_for_a_family_that_remembers_them(
    shipped: str, open_page: Open
) -> None:
    page = open_page(shipped)
    page.locator("#example-list button", has_text="Digit 2").click()
    page.get_by_role("button", name="Show what normal looks like").click()
    expect(page.locator(".neighbours img")).to_have_count(6)
    expect(page.locator(".neighbours img").first).to_have_js_property("complete", True)
    assert page.locator(".neighbours img").first.evaluate("i => i.naturalWidth") == 28


def test_files_are_taken_when_they_are_dropped_or_pasted(small: str, open_page: Open) -> None:
    page = open_page(small)
    expect(page.locator("#model-image")).to_be_enabled()
    send = """([type, name, bytes]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
      const event = type === "paste"
        ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
        : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
    }"""
    page.evaluate(send, ["drop", "dropped.png", list(encode(grey(250)))])
    expect(page.locator("#viewer-name")).to_have_text("dropped.png")
    expect(decision(page)).to_have_text("▲ Anomalous")
    page.evaluate(send, ["paste", "pasted.png", list(encode(grey(10)))])
    expect(page.locator(".tile", has_text="pasted.png")).to_have_attribute(
        "data-decision", "normal"
    )
