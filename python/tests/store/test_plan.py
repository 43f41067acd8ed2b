"""What a store would do and why: from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from memcache import InvalidArgument, Store
from memcache.cli import main


def plan(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    assert main(["plan", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_names_the_choice_and_why_others_are_impossible(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--pieces", "122", "--bytes", "8994816", "--protocol", "host_shm")
    found = plan(capsys, *shape)
    kind = found["kinds"][0]
    assert (kind["chosen"], kind["pieces"], kind["payload_bytes"]) == (3, 122, 8994816)
    assert "nothing to relay" in kind["paths"][1]["impossible"]
    assert kind["paths"][3]["predicted_us"] > 0
    small = ("--pieces", "4096", "--bytes", "1048576", "--device", "twin", "--no-checksum")
    assert plan(capsys, *small)["kinds"][0]["chosen"] == 2
    assert plan(capsys, *small, "--path", "3")["kinds"][0]["forced"]
    far = plan(capsys, *small, "--protocol", "host_tcp")["kinds"][0]
    assert far["chosen"] == 0
    assert "cannot address" in far["paths"][2]["impossible"]
    assert "offers no relay" in far["paths"][1]["impossible"]
    relayed = plan(capsys, *small, "--protocol", "host_tcp", "--relay")["kinds"][0]
    assert relayed["paths"][1]["predicted_us"] > 0
    assert main(["plan", *shape]) == 0
    assert "<- chosen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pieces", "0", "--bytes", "10"), "0 pieces"),
        (("--pieces", "2", "--bytes", "-1"), "--bytes is -1"),
        (("--pieces", "1", "--bytes", "1", "--protocol", "smoke"), "smoke"),
        (("--pieces", "1", "--bytes", "1", "--device", "abacus"), "abacus"),
        (("--pieces", "1", "--bytes", "1", "--path", "7"), "7"),
        (("--pieces", "1", "--bytes", "1", "--path", "1"), "path 1"),
        (("--pieces", "1", "--bytes", "1", "--costs", "no/such/file"), "no/such/file"),
    ],
)
def test_questions_that_make_no_sense_are_refused(
    options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    assert said in capsys.readouterr().err


def test_the_command_says_where_its_costs_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "costs.toml"
    file.write_text('["host_shm host:0".network_read]\nbatch_ns = 1\npiece_ns = 2\nbytes_per_s = 3\n')
    shape = ("--pieces", "1", "--bytes", "64", "--costs", str(file))
    assert main(["plan", *shape, "--protocol", "host_shm"]) == 0
    assert f'costs: "host_shm host:0" of {file}' in capsys.readouterr().out
    assert plan(capsys, *shape, "--protocol", "host_rdma")["costs"] == (
        f'defaults: {file} has none for "host_rdma host:0"'
    )


def test_a_store_explains_what_it_would_do() -> None:
    tensor = np.zeros((8, 4, 64), dtype=np.uint8)
    other = np.zeros((8, 4, 64), dtype=np.uint8)
    with Store(lend_bytes=0) as store:
        layout = store.register_layout([tensor, other])
        plans = store.explain_plan(layout, [1, 3])
        assert plans
        for found in plans:
            assert [kind["objects"] for kind in found["kinds"]] == [2]
            assert found["kinds"][0]["chosen"] == 3
            assert "predicted us" in found["text"]
        with pytest.raises(InvalidArgument, match="way"):
            store.explain_plan(layout, [1], "sideways")
        with pytest.raises(InvalidArgument):
            store.explain_plan(layout, [8])
    with Store(lend_bytes=0, path="1") as forced, pytest.raises(InvalidArgument, match="path 1"):
        forced.explain_plan(forced.register_layout([tensor]), [0])
