"""Draws what `bench_peers` measured: blocks beside memcpy, and how cost grows with objects and readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Record = dict[str, Any]

OWN = {
    "memcache:shm": "#0b5fa5",
    "memcache:shm,crc=off": "#4a94d0",
    "memcache:tcp": "#12805c",
    "memcache:tcp,crc=off": "#5bb894",
}
OTHERS = {"mooncake:tcp": "#c8641b", "redis:unix": "#a33b3b", "nixl:ucx": "#8a6fb0"}
COLOURS = OWN | OTHERS


def draw(results: Record, path: Path) -> None:
    """One page: a row of bars for puts, one for gets, a row of curves. Needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "memcache"}
    )
    shapes = list(dict.fromkeys(row["shape"] for row in results["blocks"]))
    columns = max(3, len(shapes))
    figure, axes = plt.subplots(3, columns, figsize=(4.6 * columns, 10.5), squeeze=False)
    for unused in (axis for line in axes for axis in line):
        unused.set_visible(False)
    for column, shape in enumerate(shapes):
        rows = [row for row in results["blocks"] if row["shape"] == shape]
        for line, what in enumerate(("put", "get")):
            _bars(axes[line][column], rows, what, f"{what} of {shape}")
    _growth(axes[2][0], results.get("growth", []), "put")
    _growth(axes[2][1], results.get("growth", []), "get")
    _readers(axes[2][2], results.get("readers", []))
    title = f"{results['cpu']}, {results['cores']} cores; two processes of one host, medians"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path, metadata={"Date": None})


def _bars(axis: Any, rows: list[Record], what: str, title: str) -> None:
    """A group of bars a system, one a batch, beside what memcpy does."""
    batches = sorted({row["batch"] for row in rows})
    systems = [name for name in COLOURS if any(row["system"] == name for row in rows)]
    height = 0.8 / len(batches)
    large, pieces = rows[0]["memcpy"], rows[0]["memcpy_pieces"]
    for number, batch in enumerate(batches):
        for place, system in enumerate(systems):
            for row in (row for row in rows if row["system"] == system and row["batch"] == batch):
                at = place + (number - (len(batches) - 1) / 2) * height
                shade = 0.55 + 0.45 * (number + 1) / len(batches)
                axis.barh(at, row[what], height * 0.92, color=COLOURS[system], alpha=shade)
                axis.text(row[what], at, f" {row[what]:.1f}", va="center", fontsize=7, color="#333333")
    axis.axvline(large, color="black", linestyle="--", linewidth=1)
    axis.axvline(pieces, color="black", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(systems)), systems)
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    calls = " / ".join(str(batch) for batch in batches)
    axis.set_xlabel(
        f"GB/s at {calls} blocks a call (top to bottom)\nmemcpy on one thread: - - one run, ... the pieces", fontsize=8
    )
    axis.set_visible(True)


def _growth(axis: Any, rows: list[Record], what: str) -> None:
    """Microseconds an object against objects a call."""
    for row in (row for row in rows if row["what"] == what):
        counts = sorted(int(count) for count in row["us"])
        costs = [row["us"].get(count, row["us"].get(str(count))) / count for count in counts]
        style = "-" if row["system"] in OWN else "--"
        axis.plot(counts, costs, style, marker="o", markersize=3, color=COLOURS[row["system"]], label=row["system"])
    if rows:
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.set_title(f"{what}: cost of an object of 16 KiB", loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel("objects a call")
        axis.set_ylabel("us an object")
        axis.grid(alpha=0.3, which="both", linewidth=0.4)
        axis.legend(fontsize=7, frameon=False)
        axis.set_visible(True)


def _readers(axis: Any, rows: list[Record]) -> None:
    """GB/s of all readers against their number."""
    for row in rows:
        counts = [count for count, rate in row["gbs"].items() if rate == rate]  # NaN: could not be had
        rates, style = [row["gbs"][count] for count in counts], "-" if row["system"] in OWN else "--"
        line = {"marker": "o", "markersize": 3, "color": COLOURS[row["system"]], "label": row["system"]}
        axis.plot([int(count) for count in counts], rates, style, **line)
    if rows:
        axis.set_title("readers at the same time, 64x32K", loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel("reader processes, 8 blocks a get")
        axis.set_ylabel("GB/s of all together")
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3, linewidth=0.4)
        axis.legend(fontsize=7, frameon=False)
        axis.set_visible(True)
