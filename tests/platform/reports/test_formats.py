"""A comparison as text: every format has the numbers, the run ids and the code version, and escapes what it must."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from starlab.platform.reports.compare import compare
from starlab.platform.reports.comparison import Comparison
from starlab.platform.reports.formats import ENDINGS, FORMATS, records, render
from starlab.platform.reports.results import read_results
from starlab.platform.reports.simulated import write_rows


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folders = write_rows(tmp_path_factory.mktemp("runs"), {"zb": ([], 0.97), "f_f": (["model.encoder=FF"], 0.85)}, clips=400)
    return compare(read_results(folders))


DOCUMENT = r"""\documentclass{article}\usepackage{booktabs}\usepackage[margin=1cm,landscape]{geometry}
\begin{document}\input{table.tex}\end{document}"""
HOSTILE = r"50 % of <b>|x|</b> _a_ & $b$ #1 {c} ~ ^ \input{x} [red]"


@pytest.fixture(scope="module")
def hostile(comparison: Comparison) -> Comparison:
    rows = (replace(comparison.rows[0], name=HOSTILE), *comparison.rows[1:])
    return replace(comparison, rows=rows, base=HOSTILE, claim=HOSTILE)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_the_values_the_run_ids_and_the_code_version(comparison: Comparison, form: str) -> None:
    text = render(comparison, form).replace(r"\_", "_")
    row = comparison.rows[1]
    assert row.difference is not None
    assert f"{row.difference.value:.2f}"[:-1].lstrip("-") in text
    assert row.verdict in text
    for one in comparison.rows:
        assert all(run.run in text for run in one.runs)
    assert "1a2b3c4d5e6f" in text


def test_every_ending_is_a_format_and_an_unknown_format_is_none() -> None:
    assert set(ENDINGS.values()) == set(FORMATS)


def test_a_terminal_of_80_columns_gets_no_longer_line_and_a_pipe_gets_each_row_on_one(comparison: Comparison) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", render(comparison, "terminal", width=80))
    assert max(map(len, plain.splitlines())) <= 80
    [line] = [line for line in render(comparison, "terminal").splitlines() if "[2]" in line and "worse" in line]
    assert "to" in line


def test_markup_of_a_terminal_is_not_read_in_names(hostile: Comparison) -> None:
    assert "[red]" in render(hostile, "terminal")


def test_a_markdown_row_has_as_many_cells_as_the_head_whatever_a_name_holds(hostile: Comparison) -> None:
    lines = [line for line in render(hostile, "markdown").splitlines() if line.startswith("| ")]
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(lines) == 4
    assert len(counts) == 1
    assert "<b>" not in render(hostile, "markdown")
    assert re.search(r"^\[\^1\]: runs zb-0", render(hostile, "markdown"), re.MULTILINE)


def test_latex_has_no_character_that_would_be_a_command(hostile: Comparison) -> None:
    text = render(hostile, "latex")
    body = text.split("\n", 1)[1]
    for letter in "&%$#_{}~^":
        escaped = body.replace(rf"\{letter}", "")
        if letter in "#~^":
            assert letter not in escaped
    assert r"\input" not in body
    assert r"50 \% of $<$b$>$|x|$<$/b$>$ \_a\_ \& \$b\$ \#1 \{c\} \textasciitilde{} \textasciicircum{}" in body
    columns = len(re.search(r"\{([lr]+)\}", body).group(1))  # type: ignore[union-attr]
    table = body[body.index("\\toprule") : body.index("\\bottomrule")]
    for line in table.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    opened = len(re.findall(r"(?<!\\)\{", body)) - len(re.findall(r"(?<!\\)\}", body))
    assert opened == 0


def test_csv_and_records_hold_numbers_in_full(hostile: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(render(hostile, "csv"))))
    assert rows[0]["row"] == HOSTILE
    assert float(rows[0]["mean"]) == hostile.rows[0].mean
    assert rows[1]["runs"].split() == ["f_f-0", "f_f-1", "f_f-2"]
    assert records(hostile)[1]["difference_p_adjusted"] == hostile.rows[1].difference.p_adjusted  # type: ignore[union-attr]


def test_json_reads_back(hostile: Comparison) -> None:
    whole = json.loads(render(hostile, "json"))
    assert whole["base"] == HOSTILE
    assert whole["rows"][1]["difference"]["seeds"] == 3
    assert len(whole["rows"][1]["difference"]["mcnemar"]) == 3
    assert [run["seed"] for run in whole["rows"][0]["runs"]] == [0, 1, 2]


def test_many_settings_are_one_text_beside_a_base_what_differs_from_it(tmp_path: Path) -> None:
    several = ["model.encoder=FF", "train.lr=0.1", "train.mixup=0.4", "model.drop_path=0.2"]
    found = compare(read_results(write_rows(tmp_path, {"plain": ([], 0.97), "other": (several, 0.85)}, clips=400)))
    named = [replace(row, name="other" if row.values["train.mixup"] else "plain", is_base=False) for row in found.rows]
    none = replace(found, rows=tuple(named), base=None)
    plain = replace(found, rows=tuple(replace(row, is_base=row.name == "plain") for row in named), base="plain")
    for rows in (none, plain):
        for form in ("terminal", "markdown", "latex"):
            text = render(rows, form).replace(r"\_", "_")
            heads = [line for line in text.splitlines() if "settings" in line]
            assert heads
            assert not any("train.mixup" in head for head in heads)
            assert all(text.count(one) == 1 for one in several), text
            assert text.count("train.mixup=0.0") == 1  # that of the base, or of the row itself
            assert text.count("train.mixup=") == 2
    assert {"model.encoder", "train.mixup"} <= set(next(csv.reader(io.StringIO(render(plain, "csv")))))


def test_a_table_shows_the_beginning_of_a_digest_and_csv_all_of_it(comparison: Comparison) -> None:
    digests = [f"{number}" * 64 for number in range(len(comparison.rows))]
    rows = [
        replace(row, values={**row.values, "train.init_digest": digest})
        for row, digest in zip(comparison.rows, digests, strict=True)
    ]
    started = replace(comparison, rows=tuple(rows), keys=("train.init_digest",))
    for digest in digests:
        assert digest[:12] in render(started, "markdown")
        assert digest[:13] not in render(started, "markdown")
        assert digest in render(started, "csv")


def test_an_empty_column_is_left_out(comparison: Comparison) -> None:
    assert "paper" not in render(comparison, "markdown").split("\n\n")[1]
    with_paper = replace(comparison, rows=(replace(comparison.rows[0], paper=98.7), comparison.rows[1]))
    assert "98.7" in render(with_paper, "markdown")


def test_the_joint_error_stands_beside_the_accuracy_of_models_that_find_joints(comparison: Comparison) -> None:
    assert "PCK" not in render(comparison, "markdown")
    first, second = comparison.rows
    found = [replace(run, test=run.test | {"pck_0.2": 0.9 + 0.02 * number}) for number, run in enumerate(first.runs)]
    with_pck = replace(comparison, rows=(replace(first, runs=tuple(found)), second))
    assert "PCK@0.2 %" in render(with_pck, "markdown")
    assert "| 92.0 |" in render(with_pck, "markdown")
    assert [record["pck_0.2"] for record in records(with_pck)] == [pytest.approx(0.92), None]


def test_latex_has_only_letters_that_it_knows_without_a_package(comparison: Comparison) -> None:
    rows = (replace(comparison.rows[0], name="σ ≤ 2 × é, 中"), *comparison.rows[1:])
    text = render(replace(comparison, rows=rows), "latex")
    assert r"$\sigma$ $\leq$ 2 $\times$ é, [U+4E2D]" in text
    assert not [letter for letter in text if letter > "\u017f"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed (Debian: texlive-latex-recommended)")
def test_latex_compiles(comparison: Comparison, hostile: Comparison, tmp_path: Path) -> None:
    rows = (replace(hostile.rows[0], name=f"{HOSTILE} σ ≤ é 中"), *hostile.rows[1:])
    for number, one in enumerate((comparison, replace(hostile, rows=rows))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "table.tex").write_text(render(one, "latex"))
        (folder / "document.tex").write_text(DOCUMENT)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
        assert (folder / "document.pdf").stat().st_size > 5000
