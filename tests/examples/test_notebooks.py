"""The notebooks in examples/: what is stored in them, and what they say when executed again."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NAMES = [path.name for path in NOTEBOOKS]
KILOBYTES = 600
MACHINE = re.compile(r"(?<![\w.])/(?:work|tmp|home|root|Users|var)/|[A-Z]:\\\\Users")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [out for cell in code_cells(notebook) for out in cell.outputs]


def kinds_of(notebook):
    return {kind for out in outputs(notebook) for kind in out.get("data", ())}


def problems(notebook):
    """What must not be in a notebook that is stored with its outputs."""
    cells, text = code_cells(notebook), json.dumps(notebook)
    wrong = []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        wrong.append("not executed once, from the first cell to the last")
    if any(out.output_type == "error" for out in outputs(notebook)):
        wrong.append("an error")
    if any(out.get("name") == "stderr" for out in outputs(notebook)):
        wrong.append("a message on stderr")
    if MACHINE.search(text):
        wrong.append("a path of a machine")
    if "widget" in text or "\\u001b" in text:
        wrong.append("widgets or control characters")
    if not {"text/html", "image/png"} <= kinds_of(notebook):
        wrong.append("no table or no image")
    if notebook.metadata.kernelspec.name != "python3":
        wrong.append("another kernel")
    return wrong


def test_there_are_five_and_the_page_lists_them():
    page = (ROOT / "docs" / "NOTEBOOKS.md").read_text(encoding="utf-8")
    assert len(NAMES) == 5
    assert re.findall(r"\(\.\./examples/([\w.-]+\.ipynb)\)", page) == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_stored_with_outputs_and_without_the_machine(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert problems(notebook) == []
    assert path.stat().st_size < 1000 * KILOBYTES
    links = re.findall(r"\]\(([\w-]+\.ipynb)\)", path.read_text(encoding="utf-8"))
    assert set(links) <= set(NAMES)


def test_each_problem_is_seen():
    def changed(change):
        notebook = read(NOTEBOOKS[0])
        change(notebook)
        return problems(notebook)

    def count(notebook):
        code_cells(notebook)[1].execution_count = 7

    def error(notebook):
        code_cells(notebook)[0].outputs.append(nbformat.v4.new_output("error", ename="E"))

    def path(notebook):
        code_cells(notebook)[0].source += "\nopen('/home/me/data')"

    def empty(notebook):
        for cell in code_cells(notebook):
            cell.outputs = []

    assert changed(count) == ["not executed once, from the first cell to the last"]
    assert changed(error) == ["an error"]
    assert changed(path) == ["a path of a machine"]
    assert changed(empty) == ["no table or no image"]


def runner():
    spec = importlib.util.spec_from_file_location("runner", EXAMPLES / "run_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_outputs_are_tidied():
    """Bars that have ended, stderr, control characters and the folder are removed."""
    out, stream = nbformat.v4.new_output, nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell(
        "x",
        outputs=[
            stream("stream", name="stderr", text="a warning"),
            stream("stream", name="stdout", text="\x1b[1m/tmp/abc/data.zip\x1b[0m\n"),
            out("display_data", data={"text/html": "", "text/plain": ""}),
            stream("stream", name="stdout", text="in /tmp/abc\n"),
            out("display_data", data={"text/html": "<b>/tmp/abc/run</b>"}, metadata={"a": 1}),
        ],
        metadata={"execution": {"iopub.execute_input": "2026"}},
    )
    notebook = runner().tidy(nbformat.v4.new_notebook(cells=[cell]), "/tmp/abc")
    text, table = notebook.cells[0].outputs
    assert text.text == "data.zip\nin .\n" and table.data["text/html"] == "<b>run</b>"
    assert notebook.cells[0].metadata == {} == table.metadata


# the last cell of each test: values of the notebook, as JSON
PROBES = {
    "01": "{f'{way} {labels}': value for (way, labels), value in accuracy.items()}",
    "02": "{name: evaluation.accuracy for name, evaluation in evaluated.items()}",
    "03": "{name: [s.miou, s.iou['road']] for name, s in scores.items()}",
    "04": "{start.name: start.accuracy for start in compared.starts}",
    "05": "{**accuracy, **summary, 'found': found, 'suspects': len(first)}",
}


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_executed_again_it_says_the_same(path, shared, tmp_path):
    run = runner()
    assert run.link_data(shared, tmp_path) == []
    number, notebook = path.name[:2], read(path)
    probe = f"import json\nprint(json.dumps({PROBES[number]}))"
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    done = run.execute(notebook, tmp_path)
    assert problems(done) == []
    CONCLUSIONS[number](json.loads(outputs(done)[-1].text))


def digits(accuracy):
    """Pretraining pays with 2 labels per class; with 10 both are good."""
    assert accuracy["SwAV, frozen 2"] > accuracy["from scratch 2"] + 0.05
    assert min(accuracy["SwAV, frozen 10"], accuracy["from scratch 10"]) > 0.8


def cifar(accuracy):
    """With ImageNet weights far better than from scratch, which is little better than guessing."""
    for name in ("frozen", "last layers", "everything"):
        assert accuracy[name] > accuracy["from scratch"] + 0.2
        assert accuracy[name] > accuracy["everything, 10 x lr"] + 0.1
    assert abs(accuracy["frozen"] - accuracy["everything"]) < 0.12


def camvid(scores):
    """The ImageNet encoder is better, and finds the road."""
    assert scores["ImageNet encoder"][0] > scores["random encoder"][0] + 0.02
    assert scores["ImageNet encoder"][1] > 0.5


def texts(accuracy):
    """The frozen encoder beats TF-IDF."""
    words, encoder = accuracy["tfidf"], max(v for k, v in accuracy.items() if k != "tfidf")
    assert encoder > words + 0.04 and encoder > 0.7


def labels(values):
    """Typical images beat random ones, suspects are wrong labels, it answers where it is right."""
    others = [values[f"random-{seed}"] for seed in range(3)]
    assert values["typical"] > sum(others) / 3 + 0.05 and values["typical"] > 0.4
    assert values["found"] > 0.25 * values["suspects"]
    assert values["answered"] < 1
    assert values["right, of those answered"] > values["right without unknown"]


CONCLUSIONS = {"01": digits, "02": cifar, "03": camvid, "04": texts, "05": labels}
