"""For all tests: shapes and types in the core's signatures are checked while they run, and
hypothesis draws the same examples every time."""

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests import typecheck

install_import_hook(
    [
        "service.contract",
        "service.detectors",
        "service.scoring",
        "service.runtime",
        "service.observed",
        "service.recalibration",
    ],
    f"{typecheck.__name__}.checked",
)
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with one image and one time-series model, both defaults; their scores are
    known by arithmetic. Not to be changed.
    """
    from tests.artifacts import publish_image, publish_series, set_active  # after the hook above

    root = tmp_path_factory.mktemp("models")
    publish_image(root)
    publish_series(root)
    set_active(root, image="bright/1", timeseries="sensors/1")
    return root
