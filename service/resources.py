"""What lives as long as the app, in one object; what lives as long as a request is in none."""

from dataclasses import dataclass

from fastapi import Request

from service.batching import Admission
from service.catalog import Catalog
from service.settings import Settings
from service.telemetry import Telemetry


@dataclass(frozen=True)
class Resources:
    """Wired once, in ``create_app``."""

    settings: Settings
    catalog: Catalog
    admission: Admission
    telemetry: Telemetry


def resources_of(request: Request) -> Resources:
    """The resources of the app that serves this request."""
    resources = request.app.state.resources
    assert isinstance(resources, Resources)
    return resources
