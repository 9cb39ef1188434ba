"""Every environment variable of the service, ``ANOMALY_*``: type, unit, default, reason."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.rate_limits import Rate
from service.runtime import Provider

PREFIX: Final = "ANOMALY_"
# read by the client, by training and by the tests
_OF_OTHERS: Final = frozenset(
    {"ANOMALY_URL", "ANOMALY_API_KEY", "ANOMALY_DATA_DIR", "ANOMALY_TEST_BROWSER"}
)


class Settings(BaseSettings):
    """Built once, by ``create_app``, and passed down. An empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore"
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
        0, ge=0, le=256, description="Batches one process scores at once; 0 = one a core."
    )
    batch_max_size: int = Field(64, ge=1, description="Items of several requests scored together.")
    batch_max_delay_ms: float = Field(
        0.0, ge=0, description="Wait for a batch to fill; 0 = score as soon as a thread is free."
    )
    queue_max_items: int = Field(
        192, ge=1, description="Items of a model in progress beyond which new ones get 503."
    )
    request_timeout_s: float = Field(
        60.0, gt=0, description="Seconds after which a request is answered with 504."
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="Seconds within which the headers of a request must be there."
    )
    review_fpr: float | None = Field(
        None, gt=0, lt=1, description="p-value up to which to say review; unset = 5 x fpr."
    )
    max_body_bytes: int = Field(20 * 1024 * 1024, ge=1, description="Bytes of one request body.")
    max_pixels: int = Field(
        64_000_000, ge=1, description="Pixels of all images of a request, seen before decoding."
    )
    max_images: int = Field(64, ge=1, description="Images of one request.")
    max_cells: int = Field(
        1_000_000,
        ge=1,
        description="Rows x columns of one recording; vectors x features of one request.",
    )
    max_windows: int = Field(
        50_000, ge=1, description="Windows scored for one recording; vectors of one request."
    )
    max_contributions: int = Field(
        200_000, ge=1, description="Vectors x features named for each in one answer; bounds memory."
    )
    max_map_pixels: int = Field(
        64_000_000, ge=1, description="Residual map values in one answer; bounds its size."
    )
    redis_url: SecretStr | None = Field(
        None, description="redis://, rediss:// or unix:// of a Redis; unset = in-process."
    )
    redis_url_file: Path | None = Field(
        None, description="File that holds the URL, to keep its password out of the environment."
    )
    cache_ttl_s: float = Field(
        300.0, ge=0, description="Seconds for which a computed answer is reused; 0 = never."
    )
    cache_max_bytes: int = Field(
        32 * 1024 * 1024,
        ge=0,
        description="Bytes of cached answers in a process; one may take an eighth.",
    )
    stream_ttl_s: float = Field(
        86400.0, ge=1, description="Seconds without an append after which a stream is forgotten."
    )
    streams_max: int = Field(256, ge=1, description="Streams that are kept without a Redis.")
    rate_limit: str | None = Field(
        None,
        description="Scorings and labels a caller may send: 100/s, 600/min, 5000/h; unset = any.",
    )
    api_keys_file: Path | None = Field(
        None, description="File of keys, one name:scope[,scope]:secret a line; read when changed."
    )
    api_keys: SecretStr | None = Field(
        None, description="The same as text, keys separated by semicolons."
    )
    state_file: Path | None = Field(
        None,
        description="Where aliases and loaded versions are kept; unset = serving.json beside the "
        "models.",
    )
    shadow_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of requests to /score, /score/timeseries and /score/vectors (not /v2, "
        "not streams) that a model's candidate scores as well.",
    )
    feedback_file: Path | None = Field(
        None,
        description="SQLite file of answers and feedback, where there is no Redis; unset = "
        "feedback.sqlite beside the state file.",
    )
    feedback_ttl_s: float = Field(
        604_800.0,
        ge=0,
        description="Seconds for which an answer can get feedback and counts for recalibration; "
        "0 = never.",
    )
    feedback_max_items: int = Field(
        250_000,
        ge=1,
        description="Scored items that are remembered for feedback; the oldest go first.",
    )
    drift_window: int = Field(
        1000,
        ge=100,
        le=100_000,
        description="Items whose scores are compared with the calibration, the last of each model "
        "version and of each of its sources.",
    )
    sources_max: int = Field(
        32,
        ge=0,
        le=1000,
        description="Sources of a model version that are counted by name; more count as other.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="How log lines are written; auto is text in a terminal, else json."
    )

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, value: str | None) -> str | None:
        if value is not None:
            Rate.parse(value)
        return value

    def redis(self) -> str | None:
        """The URL of the Redis to use, from wherever it was given.

        Raises:
            ValueError: the file that should hold it cannot be read.
        """
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        if self.redis_url_file is not None:
            try:
                return self.redis_url_file.read_text().strip()
            except OSError as error:
                where = f"ANOMALY_REDIS_URL_FILE: {self.redis_url_file}"
                raise ValueError(f"{where}: cannot be read ({error.strerror})") from None
        return None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """The variables that look like settings and are none, each with the name that is nearest."""
    settings = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    # Kubernetes tells pods of services by variables of this form
    services = [n.removesuffix("_SERVICE_HOST") for n in environment if n.endswith("_SERVICE_HOST")]
    announced = tuple(f"{s}_{kind}" for s in services for kind in ("SERVICE_", "PORT"))
    unknown = []
    for name in sorted(environment):
        known = name.upper() in settings or name.upper() in _OF_OTHERS
        if known or not name.upper().startswith(PREFIX) or name.startswith(announced):
            continue
        rest = name.upper().removeprefix(PREFIX)  # what all have in common makes nothing alike
        near = difflib.get_close_matches(rest, [s.removeprefix(PREFIX) for s in settings], n=1)
        unknown.append(f"{name} (did you mean {PREFIX}{near[0]}?)" if near else name)
    return unknown
