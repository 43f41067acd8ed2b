"""The command ``memcache``: looks at a pool, pins objects, empties nodes, replays traces."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, NamedTuple

from memcache._core import explain_shape
from memcache.errors import ConfigError, InvalidArgument, MemCacheError, Timeout, Unavailable
from memcache.replay import POLICIES, replay, table, write_plot
from memcache.status import PinStatus
from memcache.store import Store

MIB = 1 << 20

WAIT_STEP_S = 0.1
"""How often a drain that is waited for is looked at."""

PROGRESS_STEP_S = 1.0
"""How often the command says how far it is."""

FAILED, BAD_ARGUMENTS, NOT_THERE, NOT_YET = 1, 2, 3, 4
EXIT_CODES = """exit codes:
  0  done
  1  the pool cannot be reached, or the node that was to be emptied is lost, left, or is no longer being emptied
  2  wrong arguments or settings
  3  info, pin: a key is not there (or was not pinned for another reason)
  4  drain: --wait-ms is over and the node is not empty
"""


class Answer(NamedTuple):
    """What a command has to say."""

    found: Any
    """As JSON."""
    text: str
    """For people."""
    code: int = 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; its exit code, see :data:`EXIT_CODES`."""
    options = _parser().parse_args(arguments)
    try:
        if options.command in ("plan", "replay"):
            answer = _plan(options) if options.command == "plan" else _replay(options)
        else:
            with Store(meta_address=options.meta_address, lend_bytes=0) as store:
                if store.embedded:
                    raise ConfigError("no MetaService address: give --meta-address or set MEMCACHE_META_ADDRESS")
                answer = options.run(store, options)
    except MemCacheError as error:
        print(f"memcache: {error}", file=sys.stderr)
        return BAD_ARGUMENTS if isinstance(error, ValueError) else FAILED
    print(json.dumps(answer.found, indent=2) if options.json else answer.text)
    return answer.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memcache",
        description="Look at a MemCache pool, and run it.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="nodes, objects and bytes of the pool")
    nodes = commands.add_parser("nodes", help="the nodes of the pool")
    info = commands.add_parser("info", help="where a key is, how large, and who reads or writes it")
    info.add_argument("key", metavar="KEY", help="its text, or with --hex its bytes")
    info.add_argument("--hex", action="store_true", help="KEY is hexadecimal")
    pin = commands.add_parser("pin", help="keep objects from eviction")
    kind = pin.add_mutually_exclusive_group(required=True)
    kind.add_argument("--ttl-ms", type=int, help="for so long, or until a put has no room otherwise, milliseconds")
    kind.add_argument("--hard", action="store_true", help="until they are unpinned")
    unpin = commands.add_parser("unpin", help="end pins")
    for command in (pin, unpin):
        command.add_argument("keys", metavar="KEY", nargs="+", help="its text, or with --hex its bytes")
        command.add_argument("--hex", action="store_true", help="KEY is hexadecimal")
    drain = commands.add_parser("drain", help="empty a node so that it can leave; without waiting, unless --wait-ms")
    drain.add_argument("node", metavar="NODE", help="its id, as `memcache nodes` shows it")
    mode = drain.add_mutually_exclusive_group()
    mode.add_argument(
        "--evict",
        dest="mode",
        action="store_const",
        const="evict",
        help="where no other node has room, let the coldest objects of all nodes go",
    )
    mode.add_argument("--drop", dest="mode", action="store_const", const="drop", help="let its objects go")
    mode.add_argument("--cancel", dest="mode", action="store_const", const="cancel", help="end a drain; the node stays")
    mode.add_argument("--look", dest="mode", action="store_const", const="look", help="only say how far it is")
    drain.add_argument(
        "--wait-ms", type=int, default=0, help="wait so long until it has left, and say how far it is, milliseconds"
    )
    drain.set_defaults(mode="move")
    runs = ((status, _status), (nodes, _nodes), (info, _info), (drain, _drain), (pin, _pin), (unpin, _unpin))
    for command in (info, pin, drain):
        command.epilog = EXIT_CODES
        command.formatter_class = argparse.RawDescriptionHelpFormatter
    for command, run in runs:
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument(
            "--meta-address", help="where the MetaService is (default: MEMCACHE_META_ADDRESS or the file)"
        )
        command.add_argument("--timeout-ms", type=int, default=2000, help="longest wait for an answer, milliseconds")
    plan = commands.add_parser("plan", help="how objects of one shape would move, and why; needs no pool")
    plan.add_argument("--pieces", type=int, required=True, help="local pieces of one object")
    plan.add_argument("--bytes", type=int, required=True, help="payload bytes of one object")
    plan.add_argument("--objects", type=int, default=1, help="objects of the call (default: 1)")
    plan.add_argument("--protocol", default="host_shm", help="local, host_shm, host_rdma or host_tcp")
    plan.add_argument(
        "--device", default="host", help="where the pieces are: host, or twin (memory the CPU cannot touch)"
    )
    plan.add_argument("--path", default="auto", help="auto, or 0 to 3 to force one")
    plan.add_argument("--way", default="get", choices=("get", "put"))
    plan.add_argument("--costs", help="file of costs (default: what this machine has measured, else defaults)")
    plan.add_argument("--no-checksum", action="store_true", help="payloads without a checksum")
    plan.add_argument("--relay", action="store_true", help="the owner relays through a device like this one (path 1)")
    plan.add_argument("--json", action="store_true", help="print JSON")
    _add_replay(commands.add_parser("replay", help="what caches would have served of recorded requests; needs no pool"))
    return parser


def _add_replay(replay: argparse.ArgumentParser) -> None:
    replay.add_argument(
        "trace", metavar="TRACE", help="JSON lines: timestamp (ms), input_length, hash_ids (512 tokens)"
    )
    replay.add_argument("--capacity-tokens", required=True, metavar="N[,N...]", help="sizes of the cache in tokens")
    replay.add_argument("--policy", default="all", choices=(*POLICIES, "all"), help="who decides (default: all)")
    replay.add_argument("--json", action="store_true", help="print JSON")
    replay.add_argument("--plot", metavar="FILE.svg", help="also draw hit rate against capacity")


def _replay(options: argparse.Namespace) -> Answer:
    found = replay(options.trace, options.capacity_tokens, options.policy)
    if options.plot:
        write_plot(found, options.trace, options.plot)
    return Answer(found, table(found))


def _plan(options: argparse.Namespace) -> Answer:
    for name in ("pieces", "bytes", "objects"):
        if not 0 <= getattr(options, name) < 1 << 63:
            raise InvalidArgument(f"--{name} is {getattr(options, name)}; want a number from 0 on")
    found = explain_shape(
        options.pieces,
        options.bytes,
        options.objects,
        options.protocol,
        options.device,
        options.path,
        options.way,
        options.costs,
        not options.no_checksum,
        options.relay,
    )
    text = found.pop("text").rstrip()
    return Answer(found, f"{text}\ncosts: {found['costs']}")


def _status(store: Store, options: argparse.Namespace) -> Answer:
    found = store.status(options.timeout_ms)
    return Answer(found, _table(found))


def _nodes(store: Store, options: argparse.Namespace) -> Answer:
    found = store.status(options.timeout_ms)
    return Answer(found["nodes"], "\n".join(_node_lines(found)))


def _key(text: str, is_hex: bool) -> str | bytes:
    try:
        return bytes.fromhex(text) if is_hex else text
    except ValueError as error:
        raise InvalidArgument(f"KEY {text!r}: not hexadecimal") from error


def _pin(store: Store, options: argparse.Namespace) -> Answer:
    keys = [_key(key, options.hex) for key in options.keys]
    statuses = store.pin(keys, options.ttl_ms, hard=options.hard, timeout_ms=options.timeout_ms)
    words = [PinStatus(status).name.lower().replace("_", " ") for status in statuses.tolist()]
    found = dict(zip(options.keys, words, strict=True))
    lines = [f"{key}: {name}" for key, name in found.items()]
    if PinStatus.OVER_QUOTA in statuses:
        lines.append("over quota: hard pins hold hard_pin_quota (a setting of the MetaService) of a node's memory")
    return Answer(found, "\n".join(lines), 0 if (statuses == PinStatus.PINNED).all() else NOT_THERE)


def _unpin(store: Store, options: argparse.Namespace) -> Answer:
    unpinned = store.unpin([_key(key, options.hex) for key in options.keys], options.timeout_ms)
    words = ["unpinned" if was else "not pinned" for was in unpinned.tolist()]
    found = dict(zip(options.keys, words, strict=True))
    return Answer(found, "\n".join(f"{key}: {word}" for key, word in found.items()))


def _info(store: Store, options: argparse.Namespace) -> Answer:
    found = store.info(_key(options.key, options.hex), options.timeout_ms)
    lines = [
        f"{found['state']}   {found['payload_bytes']} bytes   "
        f"{len(found['replicas'])} of {found['replica_num']} replicas   {found['writers']} writers"
    ]
    if found["pin"]:
        left = "" if found["pin_left_ms"] is None else f", {found['pin_left_ms']} ms left"
        lines[0] += f"   {found['pin']} pin{left}"
    lines += [
        f"node {one['node']:<18}{one['name'][:31]:<32} segment {one['segment']} + {one['offset']}   "
        f"generation {one['generation']}   {one['leases']} leases{'   draining' if one['draining'] else ''}"
        for one in found["replicas"]
    ]
    return Answer(found, "\n".join(lines), NOT_THERE if found["state"] == "absent" else 0)


def _drain(store: Store, options: argparse.Namespace) -> Answer:
    found = store.drain(options.node, options.mode, options.timeout_ms)
    waits = options.wait_ms > 0 and options.mode != "cancel"
    if waits:
        found = _wait_until_gone(store, options, found)
    code, why = _outcome(found["state"], waits)
    if code == NOT_YET:
        why = _obstacle(store.status(options.timeout_ms), found, options.mode)
    if why:
        found["why"] = why
    return Answer(found, f"{_progress(found)}\n{why}" if why else _progress(found), code)


def _wait_until_gone(store: Store, options: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Looks until the node is out of the pool or no longer being emptied, or the time is over; the last look.

    While nobody answers, or a MetaService that was restarted does not know the node yet, it goes on looking. Raises
    :class:`memcache.Unavailable` where that is all there was at the end.
    """
    until = time.monotonic() + options.wait_ms / 1000
    told = time.monotonic()
    trouble: MemCacheError | None = None
    while found["in_pool"] and found["state"] in ("draining", "drained") and time.monotonic() < until:
        time.sleep(WAIT_STEP_S)
        if time.monotonic() - told >= PROGRESS_STEP_S:
            told = time.monotonic()
            print(trouble or _progress(found), file=sys.stderr, flush=True)
        try:
            found, trouble = store.drain(options.node, "look", options.timeout_ms), None
        except (InvalidArgument, Timeout, Unavailable) as error:
            trouble = error
    if trouble is not None:
        raise Unavailable(f"it is not known what became of node {found['node']}: {trouble}")
    return found


def _outcome(state: str, waited: bool) -> tuple[int, str]:
    """The exit code of a drain in this state, and what it means where that is not plain."""
    match state:
        case "lost":
            return FAILED, "it died with what it held"
        case "left":
            return FAILED, "it left with what it held"
        case "no" if waited:
            return FAILED, "it is not being emptied: never begun, cancelled, or it or the MetaService was started anew"
        case "draining" if waited:
            return NOT_YET, ""
        case _:
            return 0, ""


def _obstacle(status: dict[str, Any], found: dict[str, Any], mode: str) -> str:
    """Why a drain does not go on, as far as that can be told from outside."""
    if found["objects"] == 0 or mode == "drop":
        return "what is left is still read or written"
    takers = [one for one in status["nodes"] if one["node"] != found["node"] and one["drain"] == "no"]
    if not any(not one["listing"] for one in takers):
        return "no other node takes objects"
    free = sum(one["capacity_bytes"] - one["used_bytes"] for one in takers)
    if free < found["left_bytes"] and mode != "evict":
        return f"the other nodes have no more than {free / MIB:.1f} MiB free; with --evict room is made"
    return ""


def _progress(found: dict[str, Any]) -> str:
    state = "not draining" if found["state"] == "no" else found["state"]
    amounts = (
        f"{found[f'{what}_objects']} {what} ({found[f'{what}_bytes'] / MIB:.1f} MiB)" for what in ("moved", "dropped")
    )
    return (
        f"node {found['node']}: {state}, {found['objects']} objects left ({found['left_bytes'] / MIB:.1f} MiB), "
        f"{', '.join(amounts)}"
    )


def _table(status: dict[str, Any]) -> str:
    lines = [
        f"objects {status['objects']}   replicas {status['replicas']}   used {status['used_bytes'] / MIB:.1f} of "
        f"{status['capacity_bytes'] / MIB:.1f} MiB   evicted {status['evicted_objects']}   "
        f"up {status['uptime_ms'] / 1000:.0f} s",
    ]
    if status["repairs_waiting"] or status["copies"]:
        lines.append(
            f"keys that lack replicas {status['repairs_waiting']}   copies under way {status['copies']}   "
            f"made {status['copied']}"
        )
    if status["extra_replicas"]:
        lines.append(f"extra replicas of hot keys {status['extra_replicas']}, {status['extra_bytes'] / MIB:.1f} MiB")
    if status["leases"] or status["reservations"]:
        lines.append(f"leases of readers {status['leases']}   reservations of writers {status['reservations']}")
    if status["soft_pins"] or status["hard_pins"]:
        bytes_of = {kind: sum(node[f"{kind}_pinned_bytes"] for node in status["nodes"]) for kind in ("soft", "hard")}
        lines.append(
            f"soft pins {status['soft_pins']}, {bytes_of['soft'] / MIB:.1f} MiB   hard pins {status['hard_pins']}, "
            f"{bytes_of['hard'] / MIB:.1f} MiB   soft pins given up {status['pins_given_up']}"
        )
    return "\n".join(lines + _node_lines(status))


def _node_lines(status: dict[str, Any]) -> list[str]:
    lines = [
        f"{'node':<18}{'name':<32}{'objects':>10}{'used MiB':>12}{'of MiB':>12}{'seen ms ago':>13}{'drain':>10}",
    ]
    lines += [
        f"{node['node']:<18}{node['name'][:31]:<32}{node['objects']:>10}{node['used_bytes'] / MIB:>12.1f}"
        f"{node['capacity_bytes'] / MIB:>12.1f}{node['heartbeat_age_ms']:>13}{node['drain']:>10}"
        for node in status["nodes"]
    ]
    for node in status["nodes"]:
        if node["listing"]:
            lines.append(f"node {node['node']}: listing, takes nothing new before it has told all that it holds")
        if node["unrecorded"]:
            lines.append(
                f"node {node['node']}: {node['unrecorded']} objects unrecorded, which a restart of the MetaService "
                f"would lose (see holdings_slots)"
            )
    # A drain that is under way or done, as `memcache drain` tells it.
    lines += [
        _progress(node | {"state": node["drain"]} | node["drain_progress"])
        for node in status["nodes"]
        if node["drain_progress"] is not None
    ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
