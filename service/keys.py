"""API keys: who may do what, asked before anything of a request is read.

A file holds one key a line, ``name:scope[,scope]:secret``; blank lines and ``#`` comments are
skipped. A secret is 16 or more visible ASCII characters, or the ``sha256:<64 hex digits>`` of one.
Scopes: ``infer`` (scoring, feedback and model descriptions), ``metrics`` (GET /metrics), ``admin``
(all of it, and loading, unloading and aliases). The file is read again when it has changed, looked
at once a second, so that keys are exchanged without a restart; while it is broken the keys before
it hold.
Without any key configured all routes but those of ``admin`` are open.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final, Literal

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.contract.errors import AnomalyError, Forbidden, Unauthenticated
from service.problems import problem_of, problem_response
from service.settings import Settings
from service.telemetry import Telemetry

log = logging.getLogger(__name__)

KeyScope = Literal["infer", "metrics", "admin"]
SCOPES: Final[tuple[KeyScope, ...]] = ("infer", "metrics", "admin")
Need = KeyScope | Literal["open", "undecided"]

_POLL_S = 1.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET = re.compile(r"[\x21-\x7e]{16,512}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = frozenset(
    {"/", "/docs", "/openapi.json", "/favicon.ico", "/livez", "/readyz", "/healthz"}
)  # fmt: skip
_OPEN_BELOW = ("/static/", "/docs/files/", "/v2/health/")
_INFER = frozenset(
    {
        "/score", "/score/timeseries", "/score/vectors", "/feedback", "/models",
        "/v2", "/v2/repository/index",
    }
)  # fmt: skip
_INFER_BELOW = ("/streams/", "/feedback/", "/v2/models/")
_ADMIN_BELOW = ("/models/", "/v2/repository/")


class KeysMalformed(ValueError):
    """Keys that cannot be used; the message says where, and never holds a secret."""


@dataclass(frozen=True)
class Key:
    """One key; its secret is kept as a digest only."""

    name: str
    scopes: frozenset[KeyScope]
    digest: bytes


def needed(method: str, path: str) -> Need:
    """The scope that a route needs; ``undecided`` for what no rule names, such as unknown paths."""
    if path in _INFER:
        return "infer"
    if path in _OPEN or path.startswith(_OPEN_BELOW):
        return "open"
    if path == "/metrics":
        return "metrics"
    if path.startswith(_INFER_BELOW):
        return "infer"
    if path.startswith(_ADMIN_BELOW):
        return "infer" if method in _READING and path.startswith("/models/") else "admin"
    return "undecided"


def parse(lines: Iterable[str], source: str) -> tuple[Key, ...]:
    """The keys of lines ``name:scope[,scope]:secret``.

    Raises:
        KeysMalformed: a line is not of this form, or two share a name or a secret; or there is no
            key at all, which would leave everything open.
    """
    keys: list[Key] = []
    for number, raw in enumerate(lines, 1):
        line, where = raw.strip(), f"{source}, line {number}"
        if not line or line.startswith("#"):
            continue
        fields = line.split(":", 2)
        if len(fields) != 3:
            raise KeysMalformed(f"{where}: not of the form name:scope[,scope]:secret")
        name, secret = fields[0].strip(), fields[2].strip()
        if not _NAME.fullmatch(name):
            raise KeysMalformed(f"{where}: a name is letters, digits, dot, dash and underscore")
        scopes = {s.strip() for s in fields[1].split(",")}
        if not scopes <= set(SCOPES):
            raise KeysMalformed(f"{where}: unknown scope; allowed: {', '.join(SCOPES)}")
        if _DIGEST.fullmatch(secret):
            digest = bytes.fromhex(secret.partition(":")[2])
        elif secret.startswith("sha256:"):
            raise KeysMalformed(f"{where}: sha256: is followed by 64 lower-case hex digits")
        elif _SECRET.fullmatch(secret):
            digest = hashlib.sha256(secret.encode()).digest()
        else:
            raise KeysMalformed(f"{where}: a secret is 16 to 512 visible ASCII characters")
        for other in keys:
            if name == other.name or digest == other.digest:
                raise KeysMalformed(f"{where}: has the name or the secret of key {other.name!r}")
        keys.append(Key(name, frozenset(s for s in SCOPES if s in scopes), digest))
    if not keys:
        raise KeysMalformed(f"{source}: holds no key")
    return tuple(keys)


class ApiKeys:
    """The keys in force."""

    def __init__(self, file: Path | None = None, inline: str | None = None) -> None:
        self._file = file
        self._inline = (inline or "").split(";")
        self.configured = file is not None or inline is not None
        self._keys: tuple[Key, ...] = ()
        self._seen: tuple[int, int, int] | None = None
        self._next_look = monotonic() + _POLL_S
        if self.configured:
            self._seen = self._signature()
            self._keys = self._read()

    @classmethod
    def of(cls, settings: Settings) -> "ApiKeys":
        """The keys that the settings name.

        Raises:
            KeysMalformed: the file cannot be read, or a line of it not understood.
        """
        inline = settings.api_keys
        return cls(settings.api_keys_file, None if inline is None else inline.get_secret_value())

    def check(self, scope: Scope) -> None:
        """Nothing, where the request may pass; its state then names the ``caller``, if any.

        Raises:
            Unauthenticated: keys are configured, the route needs one and none that is known came.
            Forbidden: the key lacks the scope, or nobody has it as no key is configured.
        """
        need = needed(scope["method"], scope["path"])
        if need == "open":
            return
        if not self.configured:
            if need == "admin":
                raise Forbidden(
                    "this needs a key with scope admin, and no key is configured: set "
                    "ANOMALY_API_KEYS_FILE to a file of keys"
                )
            return
        secret = _presented(scope)
        if secret is None:
            raise Unauthenticated(
                f"{scope['path']} needs a key: send X-API-Key, or Authorization: Bearer"
            )
        key = self.find(secret)
        if key is None:
            raise Unauthenticated("this key is not known")
        scope.setdefault("state", {})["caller"] = key.name
        # what no rule names is for operators only, so that nothing is open by being forgotten
        if "admin" not in key.scopes and need not in key.scopes:
            wanted = "admin" if need == "undecided" else need
            has = ", ".join(s for s in SCOPES if s in key.scopes)
            raise Forbidden(f"this needs scope {wanted}; key {key.name!r} has {has}")

    def find(self, secret: bytes) -> Key | None:
        """The key with this secret, found in a time that does not depend on which it is."""
        if monotonic() >= self._next_look:
            self._look()
        digest = hashlib.sha256(secret).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _look(self) -> None:
        self._next_look = monotonic() + _POLL_S
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._keys = self._read()
        except KeysMalformed as error:
            log.error("%s; the keys before it stay in force", error)
        else:
            log.info("%s was read again: %d keys", self._file, len(self._keys))

    def _read(self) -> tuple[Key, ...]:
        lines: list[str] = []
        source = "ANOMALY_API_KEYS"
        if self._file is not None:
            source = str(self._file)
            try:
                lines = self._file.read_text("utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise KeysMalformed(
                    f"{source}: cannot be read ({getattr(error, 'strerror', 'not UTF-8')})"
                ) from None
            if any(self._inline):
                parse(lines, source)  # so that an error names the line of its own source
                source = f"{source} and ANOMALY_API_KEYS"
        return parse([*lines, *filter(None, self._inline)], source)

    def _signature(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


class KeyCheck:
    """ASGI middleware: requests that may not pass are answered before their body is read."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, telemetry: Telemetry) -> None:
        self._app = app
        self._keys = keys
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._keys.check(scope)
            except (Unauthenticated, Forbidden) as error:
                await self._refuse(scope, receive, send, error)
                return
        await self._app(scope, receive, send)

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, error: AnomalyError
    ) -> None:
        body = problem_of(Request(scope), error)
        self._telemetry.rejected(body["type"].rpartition(":")[2])
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}
        await problem_response(body, headers)(scope, receive, send)


def _presented(scope: Scope) -> bytes | None:
    """The secret that a request brings; ``X-API-Key`` counts where both are there."""
    bearer: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return bytes(value)
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = bytes(value[7:].strip())
    return bearer
