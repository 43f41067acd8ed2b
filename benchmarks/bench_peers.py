"""Our put and get beside memcpy and other systems, in one run: ``make bench-peers`` or, in an environment that has the
packages of requirements-peers.txt and the program redis-server, ``python benchmarks/bench_peers.py [--quick]``.

Every system runs in a process of its own (`peers.measure`), with its services beside it; systems take turns, several
times, so that a slow minute of the machine does not fall on one of them. A system that cannot be measured says why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from peers.draw import draw
from peers.measure import SYSTEMS
from peers.shapes import SHAPES

HERE = Path(__file__).resolve().parent
TASK_S = 240
READERS = (1, 2, 4, 8)
READ_SYSTEMS = ("memcache:shm", "memcache:tcp", "mooncake:tcp", "redis:unix")
# glibc then copies pieces of 64 KiB and more with non-temporal stores; left alone it does so only for long runs.
GLIBC_NON_TEMPORAL = "glibc.cpu.x86_non_temporal_threshold=0x10000"

Record = dict[str, Any]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "peers.measure", *words]


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, **extra}


def measure(system: str, *words: str, **extra: str) -> list[Record]:
    """The JSON lines of one measuring process; one that fails or hangs gives the reason as a line."""
    try:
        done = subprocess.run(
            command(system, *words), env=environment(**extra), capture_output=True, text=True, timeout=TASK_S
        )
    except subprocess.TimeoutExpired:
        return [{"what": "cannot", "why": f"no end after {TASK_S} s"}]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not records:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        records.append({"what": "cannot", "why": last[:200]})
    return records


def alternate(systems: Sequence[str], runs: int, *words: str) -> dict[str, list[Record]]:
    """Every system `runs` times, in turn."""
    found: dict[str, list[Record]] = defaultdict(list)
    for _ in range(runs):
        for system in systems:
            found[system] += measure(system, *words)
    return found


def median_of(records: Iterable[Record], *path: str) -> float:
    values = []
    for record in records:
        value: Any = record
        for name in path:
            value = value[name]
        values.append(float(value))
    return statistics.median(values) if values else float("nan")


def reasons(found: dict[str, list[Record]]) -> list[str]:
    """Why systems could not be measured."""
    return [
        f"  {system}: {why}"
        for system, records in found.items()
        for why in sorted({record["why"] for record in records if record["what"] == "cannot"})
    ]


def blocks_table(found: dict[str, list[Record]], shape: str, batches: Sequence[int]) -> list[Record]:
    """Prints and returns one row for each system, operation and batch."""
    copies = [record for records in found.values() for record in records if record["what"] == "memcpy"]
    large, pieces = median_of(copies, "large"), median_of(copies, "pieces")
    low, high = min(c["large"] for c in copies), max(c["large"] for c in copies)
    show(
        f"\n{shape}: one-thread memcpy {large:.1f} GB/s ({low:.1f}-{high:.1f}) in one run, {pieces:.1f} over the pieces"
    )
    show(
        f"{'':<22}{'batch':>6}{'put GB/s':>22}{'of memcpy':>10}{'get GB/s':>22}{'of memcpy':>10}{'get p50 us':>12}"
        f"{'p99':>9}{'CPU s/GB put':>14}{'get':>6}"
    )
    rows = []
    for system, records in found.items():
        for batch in batches:
            mine = [record for record in records if record.get("batch") == batch]
            puts = [record for record in mine if record["what"] == "put"]
            gets = [record for record in mine if record["what"] == "get"]
            if not puts or not gets:
                continue
            row: Record = {"shape": shape, "system": system, "batch": batch, "memcpy": large, "memcpy_pieces": pieces}
            for name, records_of in (("put", puts), ("get", gets)):
                row[name] = median_of(records_of, "gbs", "median")
                row[f"{name}_low"] = min(record["gbs"]["low"] for record in records_of)
                row[f"{name}_high"] = max(record["gbs"]["high"] for record in records_of)
                row[f"{name}_cpu_s_per_gb"] = median_of(records_of, "cpu_s_per_gb")
            row["get_p50_us"], row["get_p99_us"] = median_of(gets, "us", "median"), median_of(gets, "us", "p99")
            rows.append(row)
            show(
                f"{system:<22}{batch:>6}{spread(row, 'put'):>22}{row['put'] / large:>10.2f}{spread(row, 'get'):>22}"
                f"{row['get'] / large:>10.2f}{row['get_p50_us']:>12.0f}{row['get_p99_us']:>9.0f}"
                f"{row['put_cpu_s_per_gb']:>14.2f}{row['get_cpu_s_per_gb']:>6.2f}"
            )
    return rows


def spread(row: Record, name: str) -> str:
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f}-{row[f'{name}_high']:.2f})"


def tuned_memcpy(shape: str) -> Record:
    """GB/s of memcpy with glibc told to use non-temporal stores from 64 KiB on."""
    words = ("blocks", "--shape", shape, "--batches", "1", "--rounds", "0")
    records = measure("memcache:shm", *words, GLIBC_TUNABLES=GLIBC_NON_TEMPORAL)
    copies = [record for record in records if record["what"] == "memcpy"]
    return {"shape": shape, "large": median_of(copies, "large"), "pieces": median_of(copies, "pieces")}


def small_table(found: dict[str, list[Record]]) -> list[Record]:
    """Calls a second with 4 KiB objects, and existence of keys."""
    show("\n4 KiB objects, one a call, and existence of keys (medians of runs)")
    show(f"{'':<22}{'puts/s':>10}{'gets/s':>10}{'exist 1: us':>13}{'64: keys/s':>13}{'512: keys/s':>13}")
    rows = []
    for system, records in found.items():
        of = {what: [r for r in records if r["what"] == what] for what in ("small put", "small get")}
        exist = {batch: [r for r in records if r["what"] == "exist" and r["batch"] == batch] for batch in (1, 64, 512)}
        if not of["small put"]:
            continue
        row = {
            "system": system,
            "puts_per_s": median_of(of["small put"], "calls_per_s"),
            "gets_per_s": median_of(of["small get"], "calls_per_s"),
            "exist_us": median_of(exist[1], "us", "median"),
            "exist_64_keys_per_s": median_of(exist[64], "keys_per_s"),
            "exist_512_keys_per_s": median_of(exist[512], "keys_per_s"),
        }
        rows.append(row)
        figures = "".join(f"{value:>13.0f}" for value in list(row.values())[3:])
        show(f"{system:<22}{row['puts_per_s']:>10.0f}{row['gets_per_s']:>10.0f}{figures}")
    return rows


def growth_table(found: dict[str, list[Record]]) -> list[Record]:
    """Microseconds of a call against the number of its objects."""
    show("\none call with n objects of 16 KiB, one piece each: us (medians)")
    counts = sorted({r["objects"] for records in found.values() for r in records if "objects" in r})
    show(f"{'':<28}" + "".join(f"{count:>10}" for count in counts))
    rows = []
    for system, records in found.items():
        for what in ("growth put", "growth get"):
            by_count = {c: [r for r in records if r["what"] == what and r["objects"] == c] for c in counts}
            if not any(by_count.values()):
                continue
            row = {
                "system": system,
                "what": what.split()[1],
                "us": {c: median_of(by_count[c], "us", "median") for c in counts},
            }
            rows.append(row)
            show(f"{system:<22}{row['what']:<6}" + "".join(f"{value:>10.0f}" for value in row["us"].values()))
    return rows


def readers_table(systems: Sequence[str], seconds: float) -> list[Record]:
    """GB/s of all readers together, 8 blocks of 64x32K a call."""
    show("\nreaders at the same time, 64x32K, 8 blocks a get, GB/s of all together")
    show(f"{'':<22}" + "".join(f"{count:>9}" for count in READERS))
    rows = []
    for system in systems:
        row: Record = {"system": system, "gbs": {}}
        for count in READERS:
            row["gbs"][count] = read_together(system, count, seconds)
        rows.append(row)
        show(f"{system:<22}" + "".join(f"{value:>9.2f}" for value in row["gbs"].values()))
    return rows


def read_together(system: str, count: int, seconds: float) -> float:
    """GB/s of `count` reader processes; NaN where they cannot be had."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    shape = ("--shape", "64x32K")
    processes = [subprocess.Popen(command(system, "fill", *shape), env=environment(), **pipes)]  # type: ignore[call-overload]
    try:
        filled = record_of(processes[0])
        if filled["what"] != "filled":
            return float("nan")
        words = ("read", *shape, "--seconds", str(seconds), "--address", filled["address"])
        readers = [subprocess.Popen(command(system, *words), env=environment(), **pipes) for _ in range(count)]  # type: ignore[call-overload]
        processes += readers
        if any(record_of(reader)["what"] != "ready" for reader in readers):
            return float("nan")
        for reader in readers:
            reader.stdin.write("go\n")
            reader.stdin.flush()
        return sum(float(record_of(reader).get("gbs", "nan")) for reader in readers)
    finally:
        for process in reversed(processes):
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def record_of(process: subprocess.Popen[str]) -> Record:
    """The next JSON line of a process."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    return {"what": "cannot", "why": "it ended"}


def plot(results: Record, path: Path) -> None:
    """Draws everything, where matplotlib is installed."""
    try:
        draw(results, path)
    except ImportError:
        show("no plot: matplotlib is not installed")
        return
    show(f"plot: {path.name}")


def show(text: str) -> None:
    print(text, flush=True)


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measures everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of everything, fewer rounds")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw them here")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="measure nothing: draw the figures of this file")
    options = parser.parse_args()
    if options.redraw:
        plot(json.loads(options.redraw.read_text()), options.plot or options.redraw.with_suffix(".svg"))
        return
    runs, rounds = (1, 2) if options.quick else (3, 3)
    machine = f"{os.cpu_count()} cores, {cpu_model()}, load {os.getloadavg()[0]:.1f}"
    show(f"{machine}; medians over {runs} runs in turn (lowest-highest call)")
    results: Record = {"cpu": cpu_model(), "cores": os.cpu_count(), "load": os.getloadavg(), "blocks": [], "tuned": []}

    def keep() -> None:
        # After every part: a run that is cut short leaves what it has.
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))

    batches = [str(batch) for batch in options.batches]
    for shape in options.shapes:
        words = ("blocks", "--shape", shape, "--batches", *batches, "--rounds", str(rounds))
        found = alternate(options.systems, runs, *words)
        if any(record["what"] == "memcpy" for records in found.values() for record in records):
            results["blocks"] += blocks_table(found, shape, options.batches)
            tuned = tuned_memcpy(shape)
            results["tuned"].append(tuned)
            figures = f"{tuned['large']:.1f} in one run, {tuned['pieces']:.1f} over the pieces"
            show(f"memcpy with {GLIBC_NON_TEMPORAL}: {figures}")
        show("\n".join(reasons(found)))
        keep()
    results["growth"] = growth_table(alternate(options.systems, 1, "growth", "--rounds", str(4 * rounds)))
    keep()
    results["readers"] = readers_table([s for s in READ_SYSTEMS if s in options.systems], 1.0 if options.quick else 3.0)
    keep()
    found = alternate(options.systems, runs, "small")
    results["small"] = small_table(found)
    show("\n".join(reasons(found)))
    keep()
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
