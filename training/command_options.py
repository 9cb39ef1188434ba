"""What several commands take."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.contract import store

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ModelsDir = Annotated[
    Path, typer.Option(envvar="ANOMALY_MODELS_DIR", help="The folder of artifacts.")
]


def open_model(models: Path, model: str) -> store.Artifact:
    """The artifact of ``name`` (its highest version) or ``name/version``, verified.

    Raises:
        typer.BadParameter: there is none; the message lists those there are.
    """
    name, _, version = model.partition("/")
    known = store.versions(models, name)
    if not known or (version and not version.isdecimal()):
        listing = ", ".join(store.names(models)) or "none"
        raise typer.BadParameter(f"no model {model!r} in {models}; there are: {listing}")
    return store.open_artifact(models, name, int(version) if version else known[-1])
