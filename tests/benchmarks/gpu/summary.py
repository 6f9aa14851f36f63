"""The two tables at the end: figures with their targets, and gains."""

from __future__ import annotations

from typing import Any

from gpu.report import Report, Row


def figures(report: Report) -> list[Row]:
    """Every figure that has been measured, with its target and whether it is reached."""
    shipped = {row["what"]: row for row in report.rows("shipped")}
    best, ntu, mixed = (shipped.get(what, {}) for what in ("shipped", "shipped, ntu", "shipped, ntu mixed"))
    table: list[Row] = []
    for row in report.rows("card"):
        unit = "TFLOP/s" if "tflops" in row else "GB/s"
        add(table, row["what"], row.get("tflops", row.get("gb_per_second")), unit)
    for row in report.rows("batch-norm"):
        add(table, row["what"], row["maps"], "maps moved")
    checks = [
        row for part in report.parts for row in report.rows(part) if part in ("correctness", "gains") and "reached" in row
    ]
    wrong = [row for row in checks if not row["reached"]]
    if checks:
        add(table, f"comparisons outside their limits, of {len(checks)}", float(len(wrong)), "", at_most=0)
    for row in report.rows("training"):
        add(table, f"plain training, {row['what']}", row["clips_per_second"], "clips/s")
        add(table, "  of the matrix rate", row.get("mfu"), "")
        add(table, "  peak memory per clip", row.get("gib_per_clip"), "GiB")
    add(table, "shipped, penn, bf16, batch 16", best.get("clips_per_second"), "clips/s")
    add(table, "  of the bf16 matrix rate", best.get("mfu"), "", at_least=0.45)
    add(table, "  over plain fp32", best.get("over_plain_fp32"), "×", at_least=2.5)
    add(table, "  over plain bf16 autocast", best.get("over_plain_bf16"), "×", at_least=1.5)
    add(table, "  peak memory per clip", best.get("gib_per_clip"), "GiB")
    add(
        table,
        "NTU with an absent body, tokens of present bodies/s over Penn's",
        ntu.get("present_tokens_over_penn"),
        "×",
        at_least=0.9,
    )
    add(table, "  where a quarter of the clips have two bodies", mixed.get("present_tokens_over_penn"), "×", at_least=0.9)
    for row in shipped.values():
        if row["what"] != "shipped" and "clips_per_second" in row:
            add(table, row["what"], row["clips_per_second"], "clips/s")
            add(table, "  peak memory per clip", row.get("gib_per_clip"), "GiB")
    for row in [*report.rows("profile"), *(row for row in shipped.values() if "device_idle_share" in row)]:
        add(table, f"{row['what']}: device idle", row["device_idle_share"], "of the step")
        add(table, "  host waiting in synchronisations", row["host_waiting_share"], "of the step")
        add(table, "  synchronisations per step", row["synchronisations_per_step"], "")
    return table


def add(
    table: list[Row], what: str, value: Any, unit: str, *, at_least: float | None = None, at_most: float | None = None
) -> None:
    """Add a figure, unless it was not measured."""
    if value is None:
        return
    limit = at_least if at_least is not None else at_most
    target = "" if limit is None else f"{'≥' if at_least is not None else '≤'} {limit:g}"
    reached = None if limit is None else value >= limit if at_least is not None else value <= limit
    table.append({"what": what, "value": value, "unit": unit, "target": target, "reached": reached})


def print_tables(report: Report, *, targets: bool) -> None:
    """Print both tables, and what is missing. Without `targets`, as on a CPU, the figures mean nothing and have no verdict."""
    print(f"\n{'figure':<76} {'value':>10} {'':<11} target")
    for row in report.summary:
        verdict = {True: "reached", False: "NOT REACHED", None: ""}[row["reached"]] if targets else ""
        print(f"{row['what'][:76]:<76} {row['value']:10.4g} {row['unit']:<11} {row['target']:<7} {verdict}")
    rows = sorted(report.rows("gains"), key=lambda row: -row["gain"])
    print(f"\n{'improvement':<48} {'gain':>6}  quartiles    {'plain ms':>9} {'with ms':>9} {'GiB/clip':>9}")
    for row in rows:
        note = {"exact": "" if row["reached"] else "LOSS DIFFERS"}.get(row["kind"], row["kind"])
        span = f"{row['gain_low']:.2f}–{row['gain_high']:.2f}"
        memory = f"{row['gib_per_clip']:9.3f}" if "gib_per_clip" in row else f"{'':9}"
        print(
            f"{row['what']:<48} {row['gain']:6.3f}  {span:<11} {row['plain_ms']:9.2f} {row['changed_ms']:9.2f} {memory}  {note}"
        )
    for name, part in report.parts.items():
        if part["status"] != "done":
            print(f"\n{name}: {part['status']}: {part.get('error', '')}")
        for row in part["rows"]:
            if "failed" in row or row.get("reached") is False:
                print(f"{name}, {row['what']}: {row.get('failed', 'outside its limit')}")
