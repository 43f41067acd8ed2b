"""Replays of traces: what a pool of a given size and policy would have served."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from memcache._core import replay_trace
from memcache.errors import InvalidArgument

POLICIES = ("lru", "s3fifo", "adaptive", "clairvoyant")
COLOURS = {"lru": "#3b76c4", "s3fifo": "#d98a1f", "adaptive": "#b3263a", "clairvoyant": "#8a8f98"}
WIDTH, HEIGHT = 800, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 140, 54, 60
STEPS_MAX = 6


def replay(trace: str, capacities: str, policy: str) -> list[dict[str, Any]]:
    """Replays ``trace`` at each of the comma-separated ``capacities`` (tokens); a line on stderr says how far it is."""
    try:
        tokens = [int(text) for text in capacities.split(",")]
    except ValueError:
        raise InvalidArgument(f"--capacity-tokens {capacities!r}: want whole numbers with commas between") from None
    if min(tokens) < 0 or max(tokens) >= 1 << 63:
        raise InvalidArgument(f"--capacity-tokens {capacities!r}: numbers are from 0 to 2^63 - 1")
    policies = POLICIES if policy == "all" else (policy,)
    return replay_trace(trace, policies, tokens, _progress if sys.stderr.isatty() else None)


def _progress(policy: str, tokens: int) -> None:
    print(f"\rreplaying {policy} at {tokens} tokens{'':<20}", end="\r", file=sys.stderr, flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The hit rates, a line for each capacity and a column for each policy."""
    policies = [one for one in POLICIES if any(row["policy"] == one for row in rows)]
    lines = [f"{'tokens':>14}{'blocks':>10}" + "".join(f"{one:>13}" for one in policies)]
    for tokens, cells in _by_capacity(rows).items():
        blocks = next(iter(cells.values()))["capacity_blocks"]
        lines.append(f"{tokens:>14}{blocks:>10}" + "".join(f"{cells[one]['hit_rate']:>13.4f}" for one in policies))
    return "\n".join(lines)


def _by_capacity(rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, dict[str, Any]]]:
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["capacity_tokens"], {})[row["policy"]] = row
    return dict(sorted(found.items()))


def plot(rows: Sequence[dict[str, Any]], title: str) -> str:
    """An SVG of the hit rate of each policy against the capacity, by the logarithm of which points stand."""
    by_capacity = _by_capacity(rows)
    logs: dict[int, float] = {tokens: math.log(tokens) for tokens in by_capacity}
    low, high = min(logs.values()), max(logs.values())
    best = max(row["hit_rate"] for row in rows)
    step: float = next(size for size in (0.01, 0.02, 0.05, 0.1, 0.2) if best / size <= STEPS_MAX or size == 0.2)
    top = max(step, math.ceil(best / step - 1e-9) * step)

    def x(tokens: int) -> float:
        part = (logs[tokens] - low) / (high - low) if high > low else 0.5
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - rate / float(top) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="13" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="28" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    for number in range(round(top / step) + 1):
        at = y(number * step)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#e3e5e8"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number * step * 100:.0f} %</text>')
    last = -math.inf
    for tokens in by_capacity:
        at = x(tokens)
        parts.append(f'<path d="M{at:.1f} {HEIGHT - BOTTOM}v5" stroke="#888"/>')
        if at - last >= 48:
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{_short(tokens)}</text>')
            last = at
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">capacity, tokens</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 8}" fill="#666">part of the prompt tokens served</text>')
    parts += _lines(by_capacity, x, y)
    return "\n".join([*parts, "</svg>\n"])


def _lines(by_capacity: dict[int, dict[str, dict[str, Any]]], x: Any, y: Any) -> list[str]:
    parts, labels = [], []
    for policy in ("clairvoyant", "s3fifo", "lru", "adaptive"):  # What is looked for lies on top.
        points = [(x(tokens), y(cells[policy]["hit_rate"])) for tokens, cells in by_capacity.items() if policy in cells]
        if not points:
            continue
        colour, dash = COLOURS[policy], ' stroke-dasharray="6 4"' if policy == "clairvoyant" else ""
        way = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2.5"{dash}/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.5" fill="{colour}"/>' for across, down in points]
        labels.append((points[-1][1], policy))
    # Labels stand at the ends of their lines, in the order of the ends, and do not overlap.
    below = TOP - 18.0
    for down, policy in sorted(labels):
        below = max(down + 4, below + 18)
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{below:.1f}" fill="{COLOURS[policy]}">{policy}</text>')
    return parts


def _short(tokens: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g} {unit}"
    return str(tokens)


def write_plot(rows: Sequence[dict[str, Any]], trace: str, file: str) -> None:
    """Writes the plot of ``rows`` to ``file``."""
    try:
        Path(file).write_text(plot(rows, Path(trace).name), encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"--plot {file}: {error.strerror}") from error
