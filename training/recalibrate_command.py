"""``python -m training recalibrate``: what would change, as a table; after a yes, a new version."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from service.contract import store
from service.observed import Observed
from training.command_options import ModelsDir, open_model, out
from training.recalibrate import (
    observed_at,
    observed_in_store,
    proposal_for,
    publish_recalibrated,
)
from training.recalibrated_card import proposal_rows


def recalibrate(
    model: Annotated[str, typer.Argument(help="name or name/version")],
    feedback: Annotated[
        Path | None, typer.Option(help="What GET /feedback/calibration gave, as a file.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Of a running service; its key is ANOMALY_API_KEY.")
    ] = None,
    kept: Annotated[
        Path | None, typer.Option("--store", help="A service's feedback.sqlite.")
    ] = None,
    fpr: Annotated[
        float | None, typer.Option(help="Share of normal items to flag; default: as it is.")
    ] = None,
    period_s: Annotated[
        float | None, typer.Option(help="Only what was scored in the last so many seconds.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Publish without asking.")] = False,
    models: ModelsDir = Path("models"),
) -> None:
    """Publish a version calibrated on scores in use, without those labelled anomalous."""
    artifact = open_model(models, model)
    if [feedback, url, kept].count(None) != 2:
        raise typer.BadParameter("give one of --feedback FILE, --url URL and --store FILE")
    if feedback is not None and period_s is not None:
        raise typer.BadParameter("--period-s goes with --url and --store; a file is what it is")
    if feedback is not None:
        observed = Observed.read(feedback)
    elif url is not None:
        observed = observed_at(url, artifact, period_s)
    else:
        assert kept is not None
        observed = observed_in_store(kept, artifact, period_s)
    proposal = proposal_for(artifact, observed, fpr)
    before = artifact.manifest
    table = Table("", "", "interval", title=f"{model} recalibrated, fpr {proposal.fpr:g}")
    for row in proposal_rows(proposal):
        table.add_row(*row)
    out.print(table)
    for warning in proposal.warnings:
        out.print(f"note: {warning}", soft_wrap=True)
    if not yes:
        typer.confirm(f"Publish it as {before.name}/{store.next_version(models, before.name)}?",
                      abort=True)  # fmt: skip
    made = publish_recalibrated(
        models, artifact, proposal, lambda step: out.print(f"publish: {step}")
    )
    version = made.manifest.version
    alias = f"/models/{before.name}/aliases"
    body = f'with {{"version": {version}}}'
    out.print(
        f"published: {made.path} (card: {made.path / 'CARD.md'})\n"
        f"look first: PUT {alias}/candidate {body}; with ANOMALY_SHADOW_SHARE=0.1, shadow in "
        f"GET /models/{before.name} says how often it decides otherwise\n"
        f"then:       PUT {alias}/stable {body}; going back: the same with {before.version}",
        soft_wrap=True,
    )
    default = getattr(store.read_active(models), before.task) or ""
    if default.partition("/")[0] != before.name:
        out.print(
            f"note: active.json does not name {before.name}; unless alias stable is set, a "
            f"service that starts anew serves its highest version, which is {version} now",
            soft_wrap=True,
        )
