"""What came of the cases: as a table for the README, and as a chart."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

CHART = Path(__file__).with_name("speed.svg")


@dataclass
class Row:
    """A case, per round: seconds, or jobs a second if they are ``rates``; and the ratio that could be reached."""

    words: str
    documented: list[float] = field(default_factory=list)
    worker: list[float] = field(default_factory=list)
    limit: float | None = None
    rates: bool = False

    def ratios(self) -> list[float]:
        """How many times faster this worker was, per round."""
        ratios = [theirs / ours for theirs, ours in zip(self.documented, self.worker, strict=True)]
        return [1 / ratio for ratio in ratios] if self.rates else ratios

    def medians(self) -> tuple[str, str]:
        """Return the median of either side, with its unit."""
        return self._cell(self.documented), self._cell(self.worker)

    def _cell(self, values: list[float]) -> str:
        middle = statistics.median(values)
        return f"{figures(middle)} a second" if self.rates else f"{middle:.3f} s"


def spread(values: Sequence[float]) -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def figures(number: float) -> str:
    """Return three figures of a number, or all that stand before its point."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def times(ratios: Sequence[float]) -> str:
    """Return the median and the range, in three figures."""
    return f"{figures(statistics.median(ratios))} ({figures(min(ratios))} to {figures(max(ratios))})"


def table(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Return the results in Markdown."""
    lines = [
        "| case | documented | this worker | times faster: median (range) | limit |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.words, *row.medians(), f"**{times(row.ratios())}**", figures(row.limit) if row.limit else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), *notes]) + "\n"


def draw(rows: Sequence[Row], where: str) -> None:
    """Draw the ratios, with their spread and their limits."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "speed", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(rows) + 1.2))
    for place, row in enumerate(reversed(rows)):
        ratios = row.ratios()
        middle = statistics.median(ratios)
        axes.barh(place, middle - 1, left=1, height=0.6, color="#5b5bd6")
        axes.plot([min(ratios), max(ratios)], [place, place], color="black", linewidth=1)
        axes.text(max(*ratios, row.limit or 1) * 1.08, place, f"{figures(middle)}×", va="center")
        if row.limit:
            axes.plot([row.limit, row.limit], [place - 0.35, place + 0.35], color="#e5484d", linewidth=2)
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.words.replace("`", "") for row in reversed(rows)])
    axes.set_xscale("log")
    axes.set_xlim(0.5, 2_000)
    ticks = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], [], minor=True)
    axes.set_xlabel(
        "times faster than the documented handler\n"
        "(thin line: range of the rounds; red: what latency and concurrency allow)"
    )
    axes.set_title(where, fontsize=8, color="gray")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(CHART, metadata={"Date": None})
