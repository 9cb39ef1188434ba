"""What the import hook of ``conftest`` checks signatures with."""

from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintException


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its arguments and result checked at each call.

    A function stays as it is where a hint cannot be checked at run time: ``Self`` outside of a
    decorated class, or a Protocol that is not ``runtime_checkable``.
    """
    try:
        return beartype(function)
    except BeartypeDecorHintException:
        return function
