"""What the environment of whoever runs the tests sets must not count."""

from tests.service.conftest import _no_settings_from_outside

__all__ = ["_no_settings_from_outside"]
