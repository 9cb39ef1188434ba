"""For all tests: shapes and types in the core's signatures are checked while they run, and
hypothesis draws the same examples every time."""

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
