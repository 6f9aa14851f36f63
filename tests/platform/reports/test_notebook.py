"""The notebook of the documentation runs from its first cell to its last, on simulated runs."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[3] / "docs" / "comparing.ipynb"


def test_the_notebook_runs_and_shows_what_its_text_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs")], "outputs would grow old; the notebook is stored without them"
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "paper 98.7   base" in said
    assert "decoder=FF, encoder=FF" in said
    assert "% needs \\usepackage{booktabs}" in said
    assert "one more run of this recipe falls within" in said
    verdicts = {row.name: row.verdict for row in names["comparison"].rows}
    assert verdicts["decoder=FB, encoder=FB"] == "no difference shown"  # equal in truth
    assert verdicts["decoder=FF, encoder=FF"] == "worse"
    assert len(names["frame"]) == 12
