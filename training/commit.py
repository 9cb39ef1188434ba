"""Which state of the code something was made by."""

import subprocess
from pathlib import Path


def commit_of_the_code() -> str:
    """``git describe`` of the checkout; ``unknown`` outside one."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607 found on PATH
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
