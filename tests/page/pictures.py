"""Files for the page to be given."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from playwright.sync_api import FilePayload, Locator, Page, expect

from tests.service.pictures import encode, grey

EXAMPLES = Path(__file__).parents[2] / "examples"


def level_files(levels: Sequence[int]) -> list[FilePayload]:
    """PNGs of one grey level each; the raw score of model ``bright`` is the level / 255."""
    return [png(f"part-{i:03d}.png", encode(grey(level))) for i, level in enumerate(levels)]


def png(name: str, data: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def sensor_csv(rows: int, calm_rows: int) -> FilePayload:
    """A recording for model ``sensors``: quiet at first, far out from ``calm_rows`` on."""
    values = np.random.default_rng(1).normal(0, 0.05, (rows, 3))
    values[:, 1] += 2
    values[calm_rows:, 0] += 9
    lines = ["time,power,wind,pitch"]
    for i, row in enumerate(values):
        stamp = f"2026-01-01T{i // 60:02d}:{i % 60:02d}:00Z"
        lines.append(",".join([stamp, *(f"{v:.4f}" for v in row)]))
    return {"name": "rows.csv", "mimeType": "text/csv", "buffer": "\n".join(lines).encode()}


def choose(page: Page, files: Sequence[FilePayload | Path]) -> None:
    """As if the files were chosen in the dialog, once the page knows its models."""
    expect(page.locator("#model-image")).to_be_enabled()
    page.locator("#files").set_input_files(files)  # type: ignore[arg-type]


def decision(page: Page) -> Locator:
    """Where the decision on the image that is looked at stands."""
    return page.locator("#facts-decision")


def slide(page: Page, selector: str, value: int) -> None:
    """Moves a slider as a hand does."""
    page.locator(selector).fill(str(value))
