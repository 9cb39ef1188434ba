"""What every card is written with; loads nothing that only training needs."""

from collections.abc import Iterable, Sequence

CARD = "CARD.md"


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Iterable[object]) -> str:
        return (
            "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
        )

    return [line(heading), "|" + "---|" * len(heading), *map(line, rows)]


def lines_of(*lines: str) -> str:
    return "\n".join(lines)
