"""docs/notebook.ipynb does what it says, at tiny sizes; and docs/python.md names what there is."""

from __future__ import annotations

import ast
import json
import re

import small_run

import jaxmm

DOCS = small_run.ROOT / "docs"
NOTEBOOK = json.loads((DOCS / "notebook.ipynb").read_text())


def code_cells() -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_of_format_4_5_and_has_no_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == wanted | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
        assert (cell.get("execution_count"), cell.get("outputs", [])) == (None, [])


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    data = small_run.make_data(tmp_path)
    sizes = dict(change.removeprefix("--config.").split("=") for change in small_run.TINY)
    own = {key: type(value)(ast.literal_eval(sizes[key])) for key, value in flat_base().items() if key in sizes
           and not isinstance(value, bool | str)}  # fmt: skip
    own |= {"data.path": str(data / "colours.json"), "data.cache": str(tmp_path / "cache"), "mesh.fsdp": 1}
    loaded = jaxmm.load_config
    monkeypatch.setattr(jaxmm, "load_config", lambda name, **changes: loaded(name, **own | changes))
    space: dict = {}
    *cells, last = code_cells()
    for cell in cells:
        exec(compile(cell, "notebook", "exec"), space)
    assert isinstance(eval(compile_last(last, space), space), str)
    losses = [float(number) for number in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 3
    assert losses[2] < losses[0]


def flat_base() -> dict:
    from jaxmm.config.keys import flat

    return flat(jaxmm.load_config("base"))


def compile_last(cell: str, space: dict):
    """Runs a cell but its last expression, which a notebook would show."""
    *before, shown = ast.parse(cell).body
    exec(compile(ast.Module(before, []), "notebook", "exec"), space)
    return compile(ast.Expression(shown.value), "notebook", "eval")  # type: ignore[attr-defined]


def test_the_page_names_all_there_is():
    page = (DOCS / "python.md").read_text()
    assert {name for name in jaxmm.__all__ if f"`{name}" not in page} == set()
