"""The page: self-contained, escaped, and drawn from whatever is there."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

import unfreeze
from unfreeze.reports.examples import Example, encode_image, save_examples
from unfreeze.reports.intervals import wilson_interval
from unfreeze.reports.page import format_percent, run_page
from unfreeze.reports.run_reader import read_run

VOID = {"meta", "img", "source", "br", "link", "input"}


class Balanced(HTMLParser):
    """Notes which elements are open, and everything the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.refers = [], []

    def handle_starttag(self, tag, attributes):
        self.refers += [v for k, v in attributes if k in ("src", "srcset", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser


@pytest.mark.parametrize("run", ["bare", "pretraining", "finetuning", "demonstration"])
def test_nothing_refers_outside(run, request):
    html = run_page(read_run(request.getfixturevalue(run)))
    assert all(re.match("data:image/(png|jpeg);base64,", link) for link in read(html).refers)
    words = re.sub(r"data:image/(png|jpeg);base64,[^\"]*", "", html)
    assert "http" not in words
    assert "url(" not in words
    assert "<script" not in words


def test_what_ran_stands_there(pretraining):
    html = run_page(read_run(pretraining))
    for text in (
        "unfreeze/tiny",
        "grows with 1,437 images",
        "no. 11",
        "5.0 %",
        "Random crops",
    ):
        assert text in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "a/&lt;b&gt;cat.jpg" in html


def test_evaluation_with_interval_and_confusion(finetuning):
    html = run_page(read_run(finetuning))
    assert "The model classifies 90 % of 60 test images correctly" in html
    assert "95 % interval 79.9 % to 95.3 %" in html and "33.3 %" in html
    assert "&lt;metal&gt; as cardboard (4)" in html
    assert html.count("<td") > 9


def test_many_classes_are_told_by_their_worst_mixups(finetuning):
    count = 60
    matrix = [[5 if a == b else 0 for b in range(count)] for a in range(count)]
    matrix[3][7] = 2
    evaluation = {"n": 302, "split": "val", "accuracy": 300 / 302, "used_for_choosing": True}
    evaluation |= {"classes": [f"class {c}" for c in range(count)], "confusion": matrix}
    (finetuning / "evaluation.json").write_text(json.dumps(evaluation))
    html = run_page(read_run(finetuning))
    assert "class 3 as class 7 (2)." in html
    assert "The best epoch was selected on these images" in html
    assert "too many for a matrix" in html and "class 42" not in html


def test_the_demo_marks_the_best(demonstration):
    html = run_page(read_run(demonstration))
    assert re.findall(r'class="n best">([\d.]+ %)', html) == ["77.0 %", "94.0 %", "96.0 %"]
    assert html.index("Accuracy by number of labels") < html.index("Curves")


@pytest.mark.parametrize(("right", "total"), [(0, 0), (0, 10), (10, 10), (54, 60)])
def test_the_interval_holds_the_share(right, total):
    low, high = wilson_interval(right, total)
    assert 0 <= low < high <= 1
    assert total == 0 or low <= right / total <= high


def test_the_interval_of_wilson():
    assert wilson_interval(54, 60) == pytest.approx((0.7985, 0.9534), abs=1e-4)


def test_report_draws_into_the_run_and_can_be_redrawn(pretraining):
    first = unfreeze.report(str(pretraining))
    drawn = {path.name for path in pretraining.iterdir()}
    assert {"report.html", "curves.png", "prototypes.png"} <= drawn
    page_then = (pretraining / "report.html").read_bytes()
    assert unfreeze.report(str(pretraining)) == first
    assert (pretraining / "report.html").read_bytes() == page_then
    assert first.report == str(pretraining / "report.html")


def test_a_run_that_has_only_started_gets_a_page(bare):
    drawn = unfreeze.report(str(bare))
    assert (drawn.curves, drawn.prototypes) == (None, None)
    assert "<h2>Settings</h2>" in (bare / "report.html").read_text()


def test_a_demo_without_its_pretraining_still_draws(demonstration):
    shutil.rmtree(demonstration / "pretrain")
    assert unfreeze.report(str(demonstration)).curves is not None


def test_the_command_line_refuses_what_is_no_run(tmp_path, capsys):
    from unfreeze.cli.main import main

    assert main(["report", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_the_page_names_what_the_run_waited_for(pretraining):
    assert "of the time" not in run_page(read_run(pretraining))
    records = [
        {"step": k, "split": "train", "loss": 3.0, "seconds_data": 0.6, "seconds_step": 0.4}
        for k in range(1, 4)
    ]
    (pretraining / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert "Waiting for data took 60 % of the time." in run_page(read_run(pretraining))


def test_folds_and_seeds_stand_at_the_top(bare):
    found = {"folds": 5, "seeds": [0, 1, 2], "n": 480, "accuracy": 0.8125}
    (bare / "folds.json").write_text(json.dumps({**found, "interval": [0.77, 0.8511]}))
    text = run_page(read_run(bare))
    assert "cross-validation (5 folds, 3 seeds, 480 images, 95 %)" in text
    assert format_percent(0.8125) in text and format_percent(0.8511) in text


def add(folder, name, **values):
    path = folder / name
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, **values}))


def examples(folder):
    draw = np.random.default_rng(0)
    images = {"wrong": (80, 60, 3), "unsure": (8, 8, 3), "right": (500, 400, 3)}
    save_examples(
        folder / "examples.npz",
        [
            Example(kind, f"a/<{kind}>.jpg", "glass", "paper", 0.75, encode_image(one))
            for kind, one in ((k, draw.integers(0, 256, s, np.uint8)) for k, s in images.items())
        ],
    )


def test_the_answer_comes_first(finetuning):
    warning = {"code": "leakage", "message": "3 of 60 images were trained on."}
    add(finetuning, "result.json", warnings=[warning])
    add(finetuning, "evaluation.json", warnings=[warning])
    add(finetuning, "evaluation.json", calibration=[
        {"confidence": c, "accuracy": c, "n": 30} for c in (0.4, 0.9)
    ])  # fmt: skip
    (finetuning / "config.toml").write_text('freeze = "all"\n[reasons]\n"lr" = "usual"\n')
    examples(finetuning)
    html = run_page(read_run(finetuning))
    order = ["The model classifies 90 %", "90.0 %</p>", "3 of 60 images were trained on."]
    order += ["Confusion matrix", ">Wrong<", ">Unsure<", ">Right<", ">Curves<", ">Settings<"]
    places = [html.index(word) for word in order]
    assert places == sorted(places)
    assert html.count("3 of 60 images were trained on.") == 1  # said once
    assert "Reliability diagram" in html and "the model is overconfident" in html


def test_images_enlarge_without_a_script(finetuning):
    examples(finetuning)
    html = run_page(read_run(finetuning))
    assert html.count('<input type="checkbox" aria-label="Enlarge') == 3
    assert "a/&lt;wrong&gt;.jpg" in html and "<script" not in html
    assert 'class="zoom coarse"' in html  # the small one, in blocks


def test_a_run_that_was_interrupted_says_so(finetuning):
    (finetuning / "result.json").unlink()
    assert "not finished" in run_page(read_run(finetuning))
    config = 'data = "two words"\nfreeze = "all"\nepochs = 12\n[facts]\nsteps = 240\n'
    (finetuning / "config.toml").write_text(config)
    (finetuning / "checkpoints").mkdir()
    html = run_page(read_run(finetuning))
    assert "This run is not finished.</b> 120 of 240 steps are done." in html
    assert f"unfreeze finetune &#39;two words&#39; --out {finetuning} --resume" in html
    add(finetuning, "result.json", seconds=1.0)
    assert "not finished" not in run_page(read_run(finetuning))


def test_a_pretraining_says_whether_it_went_well_and_explains_its_figures(pretraining):
    with (pretraining / "metrics.jsonl").open("a") as stream:
        for step, value in ((0, 0.02), (400, 0.4)):
            look = {"step": step, "split": "figures", "information": value, "effective_rank": 9.0}
            stream.write(json.dumps(look) + "\n")
    html = run_page(read_run(pretraining))
    first = re.search('<h1 class="verdict">([^<]*)', html)[1]
    assert first.startswith("Pretraining learned to tell images apart")
    assert "how many dimensions the backbone" in html and "2.0 %" in html and "40.0 %" in html


def test_a_page_fits_a_narrow_screen(finetuning):
    html = run_page(read_run(finetuning))
    # each table scrolls by itself
    assert html.count('<div class="scroll"><table') == html.count("<table") > 0
