"""The page of a report: structure, escaping, size, and what is left out. Pictures of it: test_report_in_a_browser.py."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from starlab.platform.errors import UserError
from starlab.platform.reports.print_figures import write_print_figures
from starlab.platform.reports.report import report
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import Result
from starlab.platform.runs.search_records import AblationRecord, SearchSummary

VOID = {"meta", "img", "br", "link"}


class Outline(HTMLParser):
    """Checks that every tag is closed in order, and keeps headings, texts and ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(params=["run", "search", "ablation"])
def page(request: pytest.FixtureRequest, reports: dict[str, Path]) -> str:
    path = reports[request.param]
    assert path.parent.name == "artifacts"
    return path.read_text()


def drawings(page: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]


def test_a_page_is_well_formed_small_and_loads_nothing(page: str) -> None:
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    assert len(page.encode()) < 500_000
    without_text = re.sub(r">[^<]*<", "><", page)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link", without_text)
    assert not re.search(r"<(?:script|img|iframe)[^>]* src=\"(?!data:)", page)
    assert "NaN" not in without_text
    assert "nan" not in " ".join(re.findall(r' (?:d|x|y|cx|cy|width)="([^"]*)"', page))


def test_every_chart_has_a_title_a_description_and_a_table(page: str) -> None:
    found = drawings(page)
    assert len(found) >= 8
    for svg in found:
        assert svg.get("role") == "img"
        title, description = svg.find("title"), svg.find("desc")
        assert title is not None
        assert description is not None
        assert title.text
        assert description.text
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    tables = [figure for figure in figures if "<svg" in figure and re.search(r"<tbody><tr>", figure)]
    assert len(tables) == len(found)


def test_names_are_escaped_everywhere(page: str) -> None:
    assert "&lt;b&gt;left&lt;/b&gt;" in page
    assert "swing &amp; hit" in page
    for raw in ("<b>", "swing & hit", "<every>", "<CPU>", "<deep>", "<1>", "<&>"):
        assert raw not in page


def test_a_table_sorts_by_values_and_not_by_texts(page: str) -> None:
    values = [float(value) for value in re.findall(r'data-value="([^"]*)"', page)]
    assert len(values) > 50


def test_an_ablation_begins_with_its_claim_and_shows_verdicts_layers_pairings_and_missing_cells(
    reports: dict[str, Path],
) -> None:
    page = reports["ablation"].read_text()
    assert Outline(page).headings == [
        "Rows side by side",
        "Accuracy over layers",
        "Pairing of attentions",
        "Learning curves",
        "Accuracy against cost",
        "Classes and confusions",
        "What the attention looks at",
        "Embedding",
        "Cost",
        "Where the numbers come from",
    ]
    verdict = page.split('class="verdict"')[1].split("</div>")[0]
    assert "Claim: FZ/FB beats &lt;every&gt; other pairing &amp; depth." in verdict
    assert "4 rows against FZ/FB" in verdict
    assert "1 of 15 cells have no result yet" in verdict
    assert "98.7 %" in page
    assert "3 seeds per cell, depth 1" in page  # rows of other depths are no seeds of these
    assert "F looks at the last frames&quot; holds" in page


def test_a_search_says_that_its_best_trial_is_optimistic_and_draws_log_axes(reports: dict[str, Path]) -> None:
    page = reports["search"].read_text()
    assert "is optimistic" in page
    titles = [svg.findtext("title") for svg in drawings(page)]
    assert {"Every trial through its values", "train.lr", "model.layers", "Importance of each key"} <= set(titles)
    [rates] = [svg for svg in drawings(page) if svg.findtext("title") == "train.lr"]
    ticks = [text.text for text in rates.iter("text") if text.get("class") == "tick"]
    assert {"1e-4", "0.001", "0.01"} <= set(ticks)
    assert "What the attention looks at: no run was explained" in page


def test_a_search_that_has_not_ended_is_reported_by_its_finished_trials(finished_search: RunFolder) -> None:
    (finished_search.path / SearchSummary.FILE).unlink()
    page = report(finished_search).read_text()
    assert "The search has not ended" in page
    assert "Best of 24 trials" in page


def test_what_a_run_does_not_have_is_left_out_with_a_line_and_no_empty_chart(finished_run: RunFolder) -> None:
    (finished_run.path / "journal.jsonl").unlink()
    finished_run.write(replace(finished_run.require(Result), confusion=None, test=None))
    for name in ("rollout.parquet", "embedding.parquet"):
        (finished_run.artifacts / "explain" / name).unlink()
    page = report(finished_run).read_text()
    absent = page.split("Not in this report")[1]
    for line in ("Learning curves: no", "Classes and confusions: no", "What the attention looks at: no", "Embedding: no"):
        assert line in absent
    assert "<svg" not in page
    assert "The test part was not evaluated" in page


def test_a_run_without_a_result_is_refused_with_what_to_do(finished_run: RunFolder) -> None:
    (finished_run.path / Result.FILE).unlink()
    with pytest.raises(UserError, match=r"demo-1a2b has no result yet, .* must end first"):
        report(finished_run)


def test_a_damaged_trial_is_named_and_left_out(finished_search: RunFolder) -> None:
    (finished_search.path / "trials" / "trial-01" / Result.FILE).write_text("{")
    said: list[str] = []
    page = report(finished_search, said.append).read_text()
    assert any("trial-01" in line for line in said)
    assert "Best of 23 trials" in page


@pytest.mark.slow
def test_a_search_of_200_trials_stays_below_500_kilobytes(
    tmp_path: Path, make_a_search: Callable[[Path, int], RunFolder]
) -> None:
    assert report(make_a_search(tmp_path, 200)).stat().st_size < 500_000


def test_many_classes_are_cut_to_those_with_the_most_errors(finished_run: RunFolder) -> None:
    result = finished_run.require(Result)
    confusion = [[3 if column in (row, (row + 1) % 120) else 0 for column in range(120)] for row in range(120)]
    classes = tuple(f"class {number}" for number in range(120))
    finished_run.write(replace(result, classes=classes, confusion=confusion))
    page = report(finished_run).read_text()
    assert "Only the 20 classes with the most errors are drawn" in page
    assert len(page) < 500_000


def test_figures_for_print_are_vector_graphics_and_missing_ones_are_named(
    finished_ablation: RunFolder, finished_search: RunFolder
) -> None:
    paths, left_out = write_print_figures(finished_ablation)
    assert [path.name for path in paths] == ["figure1.pdf", "figure5.pdf", "figure6.pdf"]
    assert all(path.read_bytes().startswith(b"%PDF") and b"/Subtype /Image" not in path.read_bytes() for path in paths)
    assert left_out == []
    paths, left_out = write_print_figures(finished_search)
    assert [path.name for path in paths] == ["figure5.pdf"]
    assert [line.split(":")[0] for line in left_out] == ["Figure 1", "Figure 6"]


def test_a_spec_of_another_version_is_reported_without_its_cost(finished_run: RunFolder) -> None:
    spec = finished_run.read_json(SPEC)
    finished_run.write_json(SPEC, spec | {"model": spec["model"] | {"of_another_version": 1}})
    assert "of_another_version" in report(finished_run).read_text()


def test_rows_of_one_pairing_that_differ_in_something_else_are_not_drawn_as_seeds_of_one_cell(
    finished_ablation: RunFolder,
) -> None:
    record = finished_ablation.require(AblationRecord)
    other = next(cell for cell in record.cells if cell.row == "FF/FF")
    cells = tuple(replace(cell, row="FF/FF, wide") if cell == other else cell for cell in record.cells)
    rows = (*record.rows, replace(record.rows[0], name="FF/FF, wide"))
    finished_ablation.write(replace(record, rows=rows, cells=cells))
    page = report(finished_ablation).read_text()
    same = "FF/FF, wide and FF/FF have the same"
    assert f"Pairing of attentions: {same} pairing and differ in something else." in page
