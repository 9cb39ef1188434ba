"""Secrets that are there, and volumes that their owners may write: before anything else starts.

A secret that exists is never changed. To exchange Redis's: remove ``redis_auth.conf`` and
``redis_url``, then start prepare, redis and service again; docs/compose.md has the commands.
"""

import os
import secrets
import sys
from pathlib import Path

SECRETS = Path("/run/secrets")
SERVICE, REDIS, GRAFANA, PROMETHEUS = (10001, 10001), (999, 1000), (472, 0), (65534, 65534)
VOLUMES = {"/var/lib/anomaly": SERVICE, "/data": REDIS}


def write(name: str, text: str, owner: tuple[int, int]) -> None:
    """A file only its owner and its group read; whole, or not there."""
    path = SECRETS / name
    staging = path.with_name(f".{name}")
    staging.unlink(missing_ok=True)
    staging.touch(0o440)
    staging.write_text(text + "\n")
    os.chown(staging, *owner)
    staging.rename(path)
    sys.stdout.write(f"made {path}\n")


def missing(*names: str) -> bool:
    """Whether any of the files is not there; they belong together."""
    return not all((SECRETS / name).exists() for name in names)


def main() -> None:
    """All that is missing is made."""
    SECRETS.chmod(0o755)
    if missing("redis_auth.conf", "redis_url"):
        password = secrets.token_hex(24)
        write("redis_auth.conf", f"requirepass {password}", REDIS)
        write("redis_url", f"redis://:{password}@redis:6379/0", SERVICE)
    if missing("grafana_password"):
        write("grafana_password", secrets.token_urlsafe(18), GRAFANA)
    if missing("api_keys", "metrics_key"):
        metrics = secrets.token_urlsafe(24)
        keys = {"admin:admin": secrets.token_urlsafe(24), "first:infer": secrets.token_urlsafe(24)}
        keys["prometheus:metrics"] = metrics
        write("api_keys", "\n".join(f"{who}:{key}" for who, key in keys.items()), SERVICE)
        write("metrics_key", metrics, PROMETHEUS)
    for folder, owner in VOLUMES.items():
        if Path(folder).is_dir():
            os.chown(folder, *owner)


if __name__ == "__main__":
    main()
