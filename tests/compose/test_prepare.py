"""docker/prepare.py: the secrets of a first start, with a real Redis behind them."""

import os
import runpy
import subprocess
import time
from pathlib import Path

import pytest
import redis

from service.keys import parse
from tests.redis_server import redis_binary
from tests.service.test_process import free_port

ROOT = Path(__file__).parents[2]


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files after a run; owners are left alone, as only root can give files away."""
    monkeypatch.setattr(os, "chown", lambda *_: None)
    script = runpy.run_path(str(ROOT / "docker" / "prepare.py"))
    script["main"].__globals__.update(SECRETS=folder, VOLUMES={})
    script["main"]()
    return {p.name: p.read_text() for p in folder.iterdir()}


def test_secrets_are_made_once_and_readable_by_their_owners_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(tmp_path, monkeypatch)
    assert set(made) == {
        "redis_auth.conf", "redis_url", "grafana_password", "api_keys", "metrics_key"
    }  # fmt: skip
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o440}
    assert prepare(tmp_path, monkeypatch) == made
    (tmp_path / "redis_url").unlink()  # which makes no sense without the other half
    again = prepare(tmp_path, monkeypatch)
    assert again["redis_url"] != made["redis_url"]
    assert again["redis_auth.conf"] != made["redis_auth.conf"]
    assert again["api_keys"] == made["api_keys"]


def test_two_installations_share_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (prepare(folder, monkeypatch) for folder in folders)
    assert all(one[name] != two[name] for name in one)


def test_the_service_takes_the_keys_and_prometheus_has_one_for_metrics_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(tmp_path, monkeypatch)
    keys = {key.name: key.scopes for key in parse(made["api_keys"].splitlines(), "api_keys")}
    assert keys == {
        "admin": frozenset({"admin"}),
        "first": frozenset({"infer"}),
        "prometheus": frozenset({"metrics"}),
    }
    assert f"prometheus:metrics:{made['metrics_key']}" in made["api_keys"]


def test_redis_lets_in_who_has_the_url_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(tmp_path, monkeypatch)
    port = free_port()
    text = (ROOT / "docker" / "redis" / "redis.conf").read_text()
    for there, here in {
        "/run/secrets": str(tmp_path),
        "dir /data": f"dir {tmp_path}",
        "bind * -::*": "bind 127.0.0.1",
        "port 6379": f"port {port}",
    }.items():
        assert there in text
        text = text.replace(there, here)
    (tmp_path / "redis.conf").write_text(text)
    command = [redis_binary(), str(tmp_path / "redis.conf")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = made["redis_url"].strip().replace("@redis:6379", f"@127.0.0.1:{port}")
    try:
        until = time.monotonic() + 20
        with redis.Redis.from_url(url) as known:
            while True:
                try:
                    known.ping()
                    break
                except redis.ConnectionError:
                    assert process.poll() is None, "redis-server does not take the configuration"
                    assert time.monotonic() < until
                    time.sleep(0.02)
            told = str(known.config_get("maxmemory-policy", "appendonly"))
            assert "volatile-ttl" in told
            assert "yes" in told
        with (
            redis.Redis(port=port) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
    finally:
        process.terminate()
        process.wait(10)
