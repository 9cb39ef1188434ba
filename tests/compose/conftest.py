"""Miniature models for the replicas behind the proxy."""

from tests.service.conftest import two_models

__all__ = ["two_models"]
