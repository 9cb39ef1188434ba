"""The turbine model on rows of a real turbine, through HTTP: taken at all, and plausibly scored?

    python benchmarks/turbine_excerpt.py normal.csv case1.csv ...

Any csv with a time column and the 26 channels of the icing contest, standardised by its publisher.
No row labels exist for such excerpts, so nothing here is an accuracy. Results:
benchmarks/results/turbine_excerpt.md.
"""

from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from quality import RESULTS, running_service

from training.commit import commit_of_the_code

MODEL = "turbine-iae-lstm-kl"


def main(
    files: Annotated[list[Path], typer.Argument(help="csv files", exists=True)],
    models_dir: Annotated[Path, typer.Option(envvar="ANOMALY_MODELS_DIR")] = Path("models"),
) -> None:
    """Post each file, count what was decided, write the table."""
    lines = [
        "# A real turbine's excerpt scored by the model trained on simulated data",
        "",
        "Made by `python benchmarks/turbine_excerpt.py FILE...` at commit "
        f"{commit_of_the_code()}. No labels: this shows that real rows are in range and scorable, "
        "not how well icing is found.",
        "",
        "| file | rows | windows | not scorable | median p | p <= 0.05 | p <= 0.01 | most blamed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with running_service(models_dir) as url:
        for file in files:
            answer = httpx.post(
                f"{url}/score/timeseries?model={MODEL}",
                content=file.read_bytes(),
                headers={"Content-Type": "text/csv"},
                timeout=120,
            )
            answer.raise_for_status()
            results = answer.json()["results"]
            scored = [r for r in results if r["decision"] != "not_scorable"]
            p = np.array([r["p_value"] for r in scored])
            blamed: dict[str, float] = {}
            for result in scored:
                for share in result["contributions"]:
                    blamed[share["column"]] = blamed.get(share["column"], 0) + share["share"]
            top = sorted(blamed, key=lambda name: -blamed[name])[:3]
            lines.append(
                f"| {file.name} | {answer.json()['rows']} | {len(results)} | "
                f"{len(results) - len(scored)} | {np.median(p):.3f} | {np.mean(p <= 0.05):.3f} | "
                f"{np.mean(p <= 0.01):.3f} | {', '.join(top)} |"
            )
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "turbine_excerpt.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
