"""What lives as long as the app, in one object; what lives as long as a request is in none."""

from dataclasses import dataclass

from fastapi import Request

from service.batching import Admission
from service.cache import ResultCache
from service.catalog import Catalog
from service.feedback.memory import Memory
from service.rate_limits import RateLimits
from service.redis_link import RedisLink
from service.settings import Settings
from service.shadow import Shadow
from service.stream_store import StreamStore
from service.telemetry import Telemetry


@dataclass(frozen=True)
class Resources:
    """Wired once, in ``create_app``."""

    settings: Settings
    catalog: Catalog
    admission: Admission
    telemetry: Telemetry
    shadow: Shadow
    redis: RedisLink | None
    """None where none is configured."""
    cache: ResultCache
    rate_limits: RateLimits
    streams: StreamStore | None
    """None where processes would have to share them and cannot."""
    feedback: Memory


def resources_of(request: Request) -> Resources:
    """The resources of the app that serves this request."""
    resources = request.app.state.resources
    assert isinstance(resources, Resources)
    return resources
