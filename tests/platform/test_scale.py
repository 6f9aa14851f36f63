"""The arithmetic of `starlab plan`: which part limits a step, and where more GPUs stop paying."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from starlab.platform.cli import app
from starlab.platform.errors import UserError
from starlab.platform.plan_commands import parse_counts
from starlab.platform.scale import DEVICES, Device, Nodes, Work, bend, predict

WORK = Work(
    train_clips=1000,
    evaluated_clips=0,
    epochs=10,
    global_batch=16,
    training_flops=1e12,
    forward_flops=3e11,
    parameters=10_000_000,
    decoded_bytes=2.4e6,
    stored_bytes=0.0,
    clips_per_core_second=1e6,
    decodes_in_worker=True,
    checkpoint_bytes=0.0,
    checkpoints=0,
)
DEVICE = Device(name="card", flops_per_second=1e14, efficiency=0.5, step_seconds=0.0)  # 20 ms a clip
FREE = Nodes(network_bytes_per_second=1e18, link_bytes_per_second=1e18, latency_seconds=0.0, storage_bytes_per_second=1e18)


def test_without_any_other_cost_the_clips_per_second_are_those_of_the_arithmetic() -> None:
    for gpus in (1, 2, 4, 16):
        row = predict(WORK, DEVICE, FREE, gpus)
        assert row.clips_per_second == pytest.approx(50 * gpus)
        assert row.efficiency == pytest.approx(1)
        assert row.limit == "card"
    assert predict(WORK, DEVICE, FREE, 1).hours == pytest.approx((625 * 0.32 + 60) / 3600)


def test_the_rank_with_most_clips_decides() -> None:
    assert predict(WORK, DEVICE, FREE, 3).clips_per_gpu == 6
    assert predict(WORK, DEVICE, FREE, 3).clips_per_second == pytest.approx(16 / 0.12)


def test_an_all_reduce_hides_behind_the_backward_pass_and_what_is_left_counts() -> None:
    slow = replace(FREE, gpus_per_node=1, network_bytes_per_second=1e9)
    row = predict(WORK, DEVICE, slow, 2)  # 40 MB over 1 GB/s: 40 ms beside 107 ms of backward pass
    assert row.parts["all-reduce"] == pytest.approx(0.04 * 25 * 2**20 / 4e7)
    assert row.limit in ("card", "all-reduce")
    row = predict(WORK, DEVICE, slow, 16)  # 75 ms beside 13 ms
    assert row.parts["all-reduce"] == pytest.approx(0.075 - 0.02 * 2 / 3)
    assert row.limit == "all-reduce"
    assert row.clips_per_second == pytest.approx(16 / (0.02 + 0.075 - 0.02 * 2 / 3))


@pytest.mark.parametrize(
    ("work", "nodes", "limit"),
    [
        (replace(WORK, clips_per_core_second=1.0), FREE, "decoding"),
        (replace(WORK, stored_bytes=1e6), replace(FREE, storage_bytes_per_second=1e6), "storage"),
        (replace(WORK, decodes_in_worker=False), replace(FREE, network_bytes_per_second=1e8, decode_cores=1e9), "network"),
        (replace(WORK, checkpoint_bytes=1e12, checkpoints=9), replace(FREE, storage_bytes_per_second=1e9), "checkpoints"),
    ],
)
def test_the_slowest_part_is_named(work: Work, nodes: Nodes, limit: str) -> None:
    assert predict(work, DEVICE, nodes, 4).limit == limit


def test_an_all_reduce_that_is_longer_than_all_beside_it_limits_a_step_whatever_is_second() -> None:
    slow = replace(FREE, gpus_per_node=1, network_bytes_per_second=1e8, storage_bytes_per_second=1e6)
    stored = replace(WORK, stored_bytes=1e6, parameters=10**9)
    row = predict(stored, DEVICE, slow, 4)
    assert row.parts["all-reduce"] > row.parts["storage"] > row.parts[DEVICE.name]
    assert row.limit == "all-reduce"


def test_the_fixed_cost_of_a_step_limits_small_steps() -> None:
    assert predict(WORK, replace(DEVICE, step_seconds=0.02), FREE, 16).limit == "fixed cost of a step"


def test_decode_cores_of_other_nodes_help_a_stream_and_not_workers_that_decode_by_themselves() -> None:
    hungry = replace(WORK, clips_per_core_second=1.0)
    alone = predict(replace(hungry, decodes_in_worker=False), DEVICE, FREE, 1).clips_per_second
    helped = predict(replace(hungry, decodes_in_worker=False), DEVICE, replace(FREE, decode_cores=7), 1).clips_per_second
    assert helped == pytest.approx(2 * alone)
    assert predict(hungry, DEVICE, FREE, 1) == predict(hungry, DEVICE, replace(FREE, decode_cores=7), 1)


def test_more_gpus_than_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="17 GPUs for 16 clips"):
        predict(WORK, DEVICE, FREE, 17)


def test_cores_that_train_and_decode_are_counted_once() -> None:
    shared = replace(DEVICE, shares_cores=True)
    two_cores = [predict(WORK, shared, replace(FREE, cores_per_gpu=2 / workers), workers) for workers in (1, 2, 4)]
    assert [round(row.clips_per_second) for row in two_cores] == [50, 100, 100]


def test_the_fixed_cost_of_each_worker_is_taken_from_the_cores_that_all_share() -> None:
    shared = replace(DEVICE, shares_cores=True, step_seconds=0.1)
    two_cores = [predict(WORK, shared, replace(FREE, cores_per_gpu=2 / workers), workers) for workers in (1, 2, 4)]
    steps = [WORK.global_batch / row.clips_per_second for row in two_cores]
    assert steps == pytest.approx([0.32 + 0.1, 0.16 + 0.1, 0.16 + 4 * 0.1 / 2], rel=1e-3)


def test_no_step_is_shorter_than_the_host_takes_to_launch_it() -> None:
    slow_host = replace(DEVICE, host_seconds=0.1)
    assert predict(WORK, slow_host, FREE, 1) == replace(
        predict(WORK, DEVICE, FREE, 1), parts=predict(WORK, slow_host, FREE, 1).parts
    )
    assert predict(WORK, slow_host, FREE, 16).limit == "host"
    assert predict(WORK, slow_host, FREE, 16).clips_per_second == pytest.approx(WORK.global_batch / 0.1)


def test_the_bend_is_the_first_row_below_four_fifths() -> None:
    slow = replace(FREE, gpus_per_node=1, network_bytes_per_second=1e9)
    rows = [predict(WORK, DEVICE, slow, gpus) for gpus in (1, 2, 4, 8, 16)]
    bent = bend(rows)
    assert bent is not None
    assert all(row.efficiency >= 0.8 * rows[0].efficiency for row in rows if row.gpus < bent.gpus)
    assert bent.efficiency < 0.8 * rows[0].efficiency
    assert bend(rows[:1]) is None


def test_a_v100_is_said_to_be_a_prediction_and_an_h100_not() -> None:
    assert DEVICES["V100"].efficiency_range is not None
    assert DEVICES["H100"].efficiency_range is None


@pytest.mark.parametrize(("text", "counts"), [("1..8", [1, 2, 4, 8]), ("3..9", [3, 4, 8, 9]), ("8,1", [1, 8]), ("5", [5])])
def test_numbers_of_gpus(text: str, counts: list[int]) -> None:
    assert parse_counts(text) == counts


@pytest.mark.parametrize("text", ["", "a", "0..4", "8..1", "1..", "1.5", "-1", "1,x", "1..10000000"])
def test_other_numbers_of_gpus_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--gpus is"):
        parse_counts(text)


def plan(*words: str) -> Any:
    return CliRunner().invoke(app, ["plan", *words])


def test_the_plan_of_the_paper_has_the_measured_h100_step() -> None:
    rows = json.loads(plan("penn_action", "--gpu", "H100", "--gpus", "1", "--json").stdout)["rows"]
    assert rows[0]["clips_per_second"] == pytest.approx(149, rel=0.02)  # 107 ms a step of 16, measured without a stream


def test_the_plan_says_what_it_is_and_where_it_bends() -> None:
    said = plan("penn_action").stdout
    assert "penn_action on V100, predicted: 300 epochs" in said
    assert "bend     at 8 GPUs, by the all-reduce" in said
    assert "not      32 GPUs and more: a step has 16 clips" in said
    assert "no V100 was measured" in said


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--gpu", "A100"], "--gpu is 'A100'; there are figures for: H100, V100"),
        (["--efficiency", "2"], "--efficiency is 2"),
        (["--source", "tape"], "--source is 'tape'"),
        (["--network-gbps", "0"], "--network-gbps is 0"),
        (["--clips", "many"], "--clips is 'many'"),
        (["--gpus", "x"], "--gpus is 'x'"),
        (["--gpus", "20"], "--gpus 20: a step has 16 clips"),
        (["--clips", "0,5"], "--clips is '0,5'"),
    ],
)
def test_bad_options_are_named(words: list[str], wrong: str) -> None:
    result = plan("penn_action", *words)
    assert result.exit_code != 0
    assert wrong in str(result.exception)
