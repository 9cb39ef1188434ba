"""``python -m service``: the service on ANOMALY_HOST:ANOMALY_PORT until SIGTERM or Ctrl-C."""

import argparse
import logging.config
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import orjson
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service.app import create_app
from service.connection import TimedHeaders, why_not_listening
from service.contract import store
from service.keys import ApiKeys, KeysMalformed
from service.logs import log_config
from service.redis_link import RedisLink
from service.settings import Settings, unknown_variables

_GRACE_S = 1.0
# a worker that is begun anew serves what the others do
_AT_START = "_ANOMALY_VERSIONS_AT_START"
_OPTIONS = ("host", "port", "workers", "models_dir")


def served() -> FastAPI:
    """The service, for a process of its own: that ends even where a thread is at some endless
    picture.
    """

    def leave() -> None:
        last = threading.Timer(_GRACE_S, os._exit, (0,))
        last.daemon = True
        last.start()

    _end_with_parent()
    return create_app(on_end=leave, at_start=orjson.loads(os.environ.get(_AT_START, "{}")))


def _end_with_parent() -> None:
    """A worker whose first process was killed ends too, cleanly: it would hold the port for ever,
    and nobody would begin it anew.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="end with parent", daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after a clean end, 2 for settings that are wrong, 3 for a port that cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    for option in _OPTIONS:
        parser.add_argument(
            f"--{option.replace('_', '-')}",
            help=f"{Settings.model_fields[option].description} (ANOMALY_{option.upper()})",
        )
    given = vars(parser.parse_args(arguments))
    for option, value in given.items():
        if value is not None:  # workers are processes of their own and read the environment
            os.environ[f"ANOMALY_{option.upper()}"] = value
    try:
        settings = Settings()
        # a worker would find out too late to say it well
        ApiKeys.of(settings)
        url = settings.redis()
        if url is not None:
            RedisLink(url, lambda _: None)
    except KeysMalformed as error:
        sys.stderr.write(f"ANOMALY_API_KEYS_FILE: {error}\n")
        return 2
    except ValidationError as error:
        for e in error.errors():
            name = f"ANOMALY_{str(e['loc'][0]).upper()}"
            what = e["msg"].removeprefix("Value error, ")
            sys.stderr.write(f"{name}: {what}, got {e['input']!r}\n")
        return 2
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    refusal = why_not_listening(settings.host, settings.port)
    if refusal is not None:
        sys.stderr.write(f"ANOMALY_PORT: cannot listen on {refusal}\n")
        return 3
    logging.config.dictConfig(log_config(settings.log_format))
    logging.getLogger("service").setLevel(settings.log_level.upper())
    unknown = unknown_variables(os.environ)
    if unknown:
        logging.getLogger("service").warning("no settings, ignored: %s", "; ".join(unknown))
    found = {
        name: max(store.versions(settings.models_dir, name))
        for name in store.names(settings.models_dir)
    }
    os.environ[_AT_START] = orjson.dumps(found).decode()
    with tempfile.TemporaryDirectory(prefix="anomaly-metrics-") as folder:
        if settings.workers > 1:
            os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        uvicorn.run(
            "service.__main__:served",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            log_config=log_config(settings.log_format),
            access_log=False,
            server_header=False,
            http=cast("Any", partial(TimedHeaders, timeout_s=settings.header_timeout_s)),
            timeout_graceful_shutdown=8,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
