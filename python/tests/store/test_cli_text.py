"""What `memcache status` and `memcache nodes` print for people, of reports made up here."""

from typing import Any

from memcache import cli

MIB = 1 << 20


def _node(name: str, drain: str, progress: dict[str, int] | None) -> dict[str, Any]:
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
    }


def _status(**changed: Any) -> dict[str, Any]:
    quiet = dict.fromkeys(
        ("evicted_objects", "repairs_waiting", "copies", "copied", "soft_pins", "hard_pins", "pins_given_up"), 0
    )
    return {
        **quiet,
        "objects": 3,
        "replicas": 3,
        "used_bytes": 3 * MIB,
        "capacity_bytes": 32 * MIB,
        "uptime_ms": 1000,
        "extra_replicas": 0,
        "extra_bytes": 0,
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
