"""What `memcache status` and `memcache nodes` print for people, of reports made up here."""

from typing import Any

from memcache import cli

MIB = 1 << 20


def _node(name: str, drain: str, progress: dict[str, int] | None, **changed: Any) -> dict[str, Any]:
    return {
        "node": f"{name}1",
        "name": name,
        "objects": 3,
        "used_bytes": 3 * MIB,
        "capacity_bytes": 16 * MIB,
        "heartbeat_age_ms": 20,
        "drain": drain,
        "drain_progress": progress,
        "soft_pinned_bytes": 0,
        "hard_pinned_bytes": 0,
        "listing": False,
        "unrecorded": 0,
        **changed,
    }


def _status(**changed: Any) -> dict[str, Any]:
    quiet = dict.fromkeys(("evicted_objects", "repairs_waiting", "copies", "copied", "leases", "reservations"), 0)
    return {
        **quiet,
        "objects": 3,
        "replicas": 3,
        "used_bytes": 3 * MIB,
        "capacity_bytes": 32 * MIB,
        "uptime_ms": 1000,
        "extra_replicas": 0,
        "extra_bytes": 0,
        **dict.fromkeys(("soft_pins", "hard_pins", "pins_given_up"), 0),
        "nodes": [_node("a", "no", None), _node("b", "no", None)],
        **changed,
    }


def test_a_drain_is_told_below_the_nodes_and_only_of_those_that_drain() -> None:
    progress = {
        "left_bytes": 3 * MIB,
        "moved_objects": 5,
        "moved_bytes": 5 * MIB,
        "dropped_objects": 1,
        "dropped_bytes": MIB,
    }
    status = _status(nodes=[_node("a", "draining", progress), _node("b", "no", None)])
    lines = cli._node_lines(status)
    assert len(lines) == 4
    assert lines[-1] == "node a1: draining, 3 objects left (3.0 MiB), 5 moved (5.0 MiB), 1 dropped (1.0 MiB)"
    assert len(cli._node_lines(_status())) == 3


def test_extra_replicas_of_hot_keys_have_a_line_where_there_are_some() -> None:
    text = cli._table(_status(extra_replicas=2, extra_bytes=3 * MIB // 2))
    assert "extra replicas of hot keys 2, 1.5 MiB" in text.splitlines()
    assert "extra" not in cli._table(_status())


def test_what_a_restart_would_lose_and_who_is_still_telling_is_said_of_each_node() -> None:
    nodes = [_node("a", "no", None, listing=True), _node("b", "no", None, unrecorded=7)]
    lines = cli._node_lines(_status(nodes=nodes))
    assert len(lines) == 5
    assert lines[3].startswith("node a1: listing,")
    assert lines[4].startswith("node b1: 7 objects unrecorded,")


def test_leases_and_reservations_have_a_line_where_there_are_some() -> None:
    assert "leases of readers 2   reservations of writers 0" in cli._table(_status(leases=2)).splitlines()
    assert "leases of readers 0   reservations of writers 3" in cli._table(_status(reservations=3)).splitlines()
    assert "leases" not in cli._table(_status())
