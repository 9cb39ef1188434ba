"""Every environment variable of the service, ``ANOMALY_*``: type, unit, default, reason."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.runtime import Provider


class Settings(BaseSettings):
    """Built once, by ``create_app``, and passed down. An empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_prefix="ANOMALY_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    models_dir: Path = Field(Path("models"), description="Folder of artifacts and active.json.")
    load_versions: Literal["active", "all"] = Field(
        "active", description="Which versions are held in memory: one a model, or every one."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 for a free one.")
    workers: int = Field(1, ge=1, le=256, description="Processes; each loads every model.")
    providers: Provider = Field(
        "cpu",
        description="Where graphs run: cpu; cuda (else CPU); cuda! (not ready without a GPU).",
    )
    threads: int = Field(0, ge=0, description="Threads of one graph; 0 = one a core.")
    concurrency: int = Field(
        4, ge=1, le=256, description="Requests of one process that decode or score at once."
    )
    queue_max_items: int = Field(
        256, ge=1, description="Images and recordings in progress beyond which new ones get 503."
    )
    request_timeout_s: float = Field(
        60.0, gt=0, description="Seconds after which a request is answered with 504."
    )
    review_fpr: float | None = Field(
        None, gt=0, lt=1, description="p-value up to which to say review; unset = 5 x fpr."
    )
    max_body_bytes: int = Field(20 * 1024 * 1024, ge=1, description="Bytes of one request body.")
    max_pixels: int = Field(
        64_000_000, ge=1, description="Pixels of all images of a request, seen before decoding."
    )
    max_images: int = Field(64, ge=1, description="Images of one request.")
    max_cells: int = Field(1_000_000, ge=1, description="Rows x columns of one recording.")
    max_windows: int = Field(50_000, ge=1, description="Windows scored for one recording.")
    max_map_pixels: int = Field(
        64_000_000, ge=1, description="Residual map values in one answer; bounds its size."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )
