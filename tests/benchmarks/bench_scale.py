"""Compares what platform/scale.py predicts with this machine: `python tests/benchmarks/bench_scale.py`.

The cost of a clip and of a step is taken from one worker at two sizes of batch, and the cost of decoding from one thread. Two
and four workers are then predicted and measured. Nothing here is a test: a busy machine moves every figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from starlab.experiments.spec import load_spec
from starlab.pipelines.loading import LoadClips
from starlab.pipelines.schedule import Schedule, TrainPlan
from starlab.pipelines.sources import open_source
from starlab.platform.dry_run import usable_cpus
from starlab.platform.runs.journal import read_points
from starlab.platform.runs.metric_names import CLIPS_PER_SECOND
from starlab.platform.scale import Device, Nodes, Work, predict
from starlab.platform.trainer import train

FIRST_STEP = 20
DECODED_CLIPS = 200


def step_seconds(runs: Path, workers: int, global_batch: int, epochs: float) -> float:
    """Median duration of a step of the demo on this machine."""
    overrides = [
        f"resources.workers={workers}",
        f"train.seed={workers}",  # a run's id does not depend on its workers, and a finished run is not trained again
        f"train.global_batch={global_batch}",
        f"train.epochs={epochs}",
        "train.evaluate_every_epochs=1000",
        "data.decode=worker",
        "resources.cpus_per_worker=0.45",
    ]
    result = train(load_spec("demo", overrides), runs=runs, say=print)
    points = read_points(result.folder / "journal.jsonl")
    rates = [point.value for point in points if point.key == CLIPS_PER_SECOND and point.step > FIRST_STEP]
    return global_batch / statistics.median(rates)


def decoded_per_second(runs: Path) -> float:
    """Clips that one core decodes in a second of its time."""
    config = load_spec("demo").data
    source = open_source(config, runs)
    load = LoadClips(source, config, TrainPlan(Schedule(0, len(source.clips)), tuple(range(len(source.clips))), 8, 0, 1, 0), 0)
    columns = load.empty(1)
    began = time.process_time()
    for row in range(DECODED_CLIPS):
        load.load(row, columns, 0)
    return DECODED_CLIPS / (time.process_time() - began)


def main() -> None:
    """Measure, predict, print and write runs/bench_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_scale.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        small, large = (step_seconds(runs, 1, batch, options.epochs) for batch in (4, 8))
        clip = (large - small) / 4
        device = Device(
            name="CPU", flops_per_second=1 / clip, efficiency=1.0, step_seconds=max(0.0, small - 4 * clip), shares_cores=True
        )
        decoded = decoded_per_second(runs)
        rows = []
        for workers in (1, 2, 4):
            work = Work(
                train_clips=720, evaluated_clips=0, epochs=1, global_batch=8, training_flops=1.0, forward_flops=0.3,
                parameters=200_000, decoded_bytes=0, stored_bytes=0, clips_per_core_second=decoded, decodes_in_worker=True,
                checkpoint_bytes=0, checkpoints=0,
            )  # fmt: skip
            nodes = Nodes(gpus_per_node=workers, cores_per_gpu=usable_cpus() / workers, storage_bytes_per_second=1e12)
            predicted = predict(work, device, nodes, workers).clips_per_second
            measured = 8 / (large if workers == 1 else step_seconds(runs, workers, 8, options.epochs))
            rows.append({"workers": workers, "predicted": predicted, "measured": measured, "ratio": measured / predicted})
    print(f"{'workers':>8} {'predicted':>10} {'measured':>10} {'ratio':>6}   clips/s")
    for row in rows:
        print(f"{row['workers']:>8} {row['predicted']:>10.1f} {row['measured']:>10.1f} {row['ratio']:>6.2f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps(
            {"clip_seconds": clip, "decoded_per_core_second": decoded, "step_seconds": device.step_seconds, "rows": rows},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
