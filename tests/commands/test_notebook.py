"""examples/tour.ipynb runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

TOUR = Path(__file__).parents[2] / "examples" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    first, second = printed.splitlines()[0].split(" = ")
    assert abs(float(first) - float(second)) < 2e-6  # smooth_ce is what the text says
    assert "epoch 3: loss" in printed and "of them inside their radius: 0" in printed
    share = float(printed.split("right ")[1].split("%")[0])
    assert share >= 70, printed  # it has learned
    shown = [output.get("data", {}) for output in outputs]
    assert any("image/png" in data for data in shown)
    assert any("images certified" in data.get("text/html", "") for data in shown)


def test_it_names_no_place_of_whoever_ran_it():
    text = TOUR.read_text(encoding="utf-8")
    assert "/home/" not in text and "/root" not in text and "/tmp/" not in text
