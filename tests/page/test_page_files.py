"""The files of the page: their policy, that they are asked for again, and that a wheel has them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parents[2]
WEB = ROOT / "service" / "web"
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    folder = tmp_path_factory.mktemp("none")
    return TestClient(create_app(Settings(models_dir=folder, state_file=folder / "serving.json")))


def policy(response: httpx.Response) -> set[str]:
    return set(response.headers["Content-Security-Policy"].split("; "))


def test_the_page_may_load_files_of_this_host_alone_and_nothing_inline(client: TestClient) -> None:
    response = client.get("/")
    assert policy(response) == POLICY
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert policy(client.get("/docs")) - POLICY == {"style-src 'self' 'unsafe-inline'"}
    assert "default-src 'none'" in policy(client.get("/livez"))


def test_files_that_are_the_same_are_not_sent_again(client: TestClient) -> None:
    for path in ("/", "/docs", "/static/js/main.js", "/static/css/base.css", "/favicon.ico"):
        first = client.get(path)
        assert first.headers["Cache-Control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b""), path
        assert policy(again) == policy(first)


def test_every_module_is_named_in_the_page_so_that_none_is_waited_for() -> None:
    page = (WEB / "index.html").read_text()
    for module in (WEB / "js").glob("*.js"):
        assert f'href="static/js/{module.name}"' in page or module.name == "main.js"


def test_no_file_of_the_page_names_another_host_or_parses_html() -> None:
    for file in [*WEB.glob("*.html"), *WEB.glob("css/*"), *WEB.glob("js/*")]:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        for word in (
            "http://",
            "https://",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
        ):
            assert word not in text, f"{file.name}: {word}"


def test_a_wheel_holds_the_page_and_its_examples(tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # so that building leaves nothing in the checkout
    shutil.copytree(ROOT / "service", copy / "service")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {i.filename: i.file_size for i in archive.infolist()}
    for file in WEB.rglob("*"):
        if file.is_file():
            assert held[str(file.relative_to(ROOT))] == file.stat().st_size, file
