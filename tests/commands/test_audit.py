"""`audit`: flipped labels are found, copies come first, and the corrected list goes back."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unfreeze
from unfreeze.cli.main import main
from unfreeze.config.labelling import AuditSettings
from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.runs.labelling import audit as label_audit
from unfreeze.runtime.terminal import Environment

TINY = {"arch": "unfreeze/tiny", "weights": "none", "image_size": 16, "device": "cpu"}
WORDS = ["--arch", "unfreeze/tiny", "--weights", "none", "--image-size", "16", "--device", "cpu"]


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    code = main(list(map(str, words)), Environment(out, err))
    return code, out.getvalue(), err.getvalue()


def table(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def listed(path, rows):
    """A list of labels."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return path


@pytest.fixture(scope="module")
def world(colours, tmp_path_factory):
    """Images of three colours: one labelled wrong, a copy of another, one that is broken."""
    place = tmp_path_factory.mktemp("audit")
    data = colours(place / "d", {"red": 12, "green": 12, "blue": 12}, side=24)
    rows = [(f"{c}/{n:03}.png", c) for c in ("red", "green", "blue") for n in range(12)]
    rows[3] = (rows[3][0], "green")
    with Image.open(data / "blue/005.png") as image:
        image.resize((52, 48), Image.Resampling.BICUBIC).save(data / "copy.png")
    rows.append(("copy.png", "red"))
    (data / "broken.png").write_bytes(b"no image")
    rows.append(("broken.png", "blue"))
    listed(place / "list.csv", rows)
    return place


@pytest.fixture(scope="module")
def audited(world):
    return unfreeze.audit(
        str(world / "d"), str(world / "out"), labels=str(world / "list.csv"), **TINY
    )


def test_a_copy_comes_first_and_then_the_flipped_label(audited):
    assert (audited.images, audited.left_out) == (37, 1)
    first, second = audited.suspects[:2]
    assert audited.conflicts == [["blue/005.png", "copy.png"]]
    assert {k: first[k] for k in ("path", "label", "suggested", "reason")} == {
        "path": "copy.png", "label": "red", "suggested": "blue", "reason": "duplicate"
    }  # fmt: skip
    assert (second["path"], second["label"], second["suggested"]) == (
        "red/003.png", "green", "red",
    )  # fmt: skip
    assert second["probability"] > 0.8 and second["score"] > 0.8
    assert second["reason"] == "confident learning"
    assert not any(s["path"] == "blue/005.png" for s in audited.suspects)


def test_without_wrong_labels_nothing_is_suspect(coloured, tmp_path):
    data = coloured("d", {"red": 10, "green": 10}, side=24)
    result = unfreeze.audit(str(data), str(tmp_path / "out"), **TINY)
    assert (result.suspects, result.conflicts, result.accuracy) == ([], [], 1.0)
    page = (tmp_path / "out/audit.html").read_text()
    assert "0 of 20 labels are suspect." in page and "<p>None.</p>" in page


def test_the_order_of_a_list_changes_no_suspect(world, audited, tmp_path):
    rows = [(row["path"], row["label"]) for row in table(world / "list.csv")]
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(rows))
        path = listed(world / f"d/list-{seed}.csv", [rows[i] for i in order])
        again = unfreeze.audit(str(path), str(tmp_path / str(seed)), **TINY)
        path.unlink()
        assert again.suspects == audited.suspects


def test_the_files_hold_what_is_returned(world, audited):
    written = json.loads((world / "out/audit.json").read_text())
    assert written["suspects"] == audited.suspects and written["images"] == 37
    rows = table(audited.table)
    assert [row["path"] for row in rows] == [s["path"] for s in audited.suspects]
    assert float(rows[0]["score"]) == audited.suspects[0]["score"]
    labels = table(audited.labels)
    present = {row["path"]: row["label"] for row in table(world / "list.csv")}
    # every label as it is, the broken image included; suspects first
    assert {row["path"]: row["label"] for row in labels} == present
    assert [row["path"] for row in labels][: len(rows)] == [row["path"] for row in rows]


def test_the_page_shows_the_suspects_and_needs_no_other_file(audited):
    page = Path(audited.page).read_text(encoding="utf-8")
    assert page.count("data:image/") == len(audited.suspects) + 1  # and the copy's other image
    assert page.index("copy.png") < page.index("red/003.png")
    assert '<b>red</b><span class="file" title="copy.png">' in page
    assert '<span class="was">green</span><br><b>red</b>' in page
    assert "1 image has copies under other labels; 1 image cannot be read." in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_json_and_the_labels_go_back_into_finetune(world, tmp_path):
    out = tmp_path / "out"
    words = ["audit", world / "d", "--labels", world / "list.csv", *WORDS, "--out", out]
    code, printed, err = call(*words, "--json")
    assert code == 0, err
    suspects = json.loads(printed)["suspects"]
    assert suspects == json.loads((out / "audit.json").read_text())["suspects"]
    rows = table(out / "labels.csv")
    for row in rows:
        if row["path"] == "copy.png":
            row["label"] = ""  # leave it out
        elif row["path"] == "red/003.png":
            row["label"] = row["suggested"]
    with (out / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    # the labels that somebody edited are not overwritten
    code, _, err = call(*words)
    assert code == 2 and "was edited since" in err
    assert table(out / "labels.csv") == rows
    run = tmp_path / "run"
    train = ["finetune", world / "d", "--labels", out / "labels.csv", *WORDS, "--epochs", 1]
    code, _, err = call(*train, "--out", run)
    assert code == 0, err
    used = {row["path"]: row["label"] for row in table(run / "split.csv")}
    assert used["red/003.png"] == "red" and "copy.png" not in used and len(used) == 36


def test_an_unedited_audit_is_replaced(coloured, tmp_path):
    data, out = coloured("d", {"red": 6, "green": 6}), tmp_path / "out"
    for _ in range(2):
        assert call("audit", data, *WORDS, "--out", out)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "audit.html", "audit.json", "labels.csv", "suspects.csv",
    ]  # fmt: skip
    (out / "notes.txt").write_text("mine")
    code, _, err = call("audit", data, *WORDS, "--out", out)
    assert code == 2 and "holds notes.txt" in err and (out / "notes.txt").exists()
    # its labels are an input of the next audit, and not its output
    (out / "notes.txt").unlink()
    code, _, err = call("audit", data, "--labels", out / "labels.csv", *WORDS, "--out", out)
    assert code == 2 and "is an input" in err


def test_one_split_is_audited_and_all_labels_are_kept(coloured, tmp_path):
    counts = {"train/red": 6, "train/green": 6, "test/red": 5, "test/green": 5}
    data = coloured("d", counts, side=24)
    (data / "train/red/000.png").rename(data / "train/green/wrong.png")
    result = unfreeze.audit(str(data), str(tmp_path / "a"), split="train", **TINY)
    assert result.images == 12 and result.suspects[0]["path"].endswith("green/wrong.png")
    rows = table(result.labels)
    assert [row["split"] for row in rows].count("test") == 10 and len(rows) == 22
    whole = unfreeze.audit(str(data), str(tmp_path / "b"), **TINY)
    assert whole.images == 22
    with pytest.raises(DataError, match="no split 'val'"):
        unfreeze.audit(str(data), str(tmp_path / "c"), split="val", **TINY)


def test_what_cannot_be_audited_is_refused_with_a_next_step(coloured, tmp_path):
    def refusal(data, **how):
        with pytest.raises(DataError) as raised:
            unfreeze.audit(str(data), str(tmp_path / "out"), **TINY, **how)
        assert raised.value.next_step and not (tmp_path / "out").exists()
        return raised.value

    few = refusal(coloured("few", {"red": 9, "green": 3}))
    assert "the class 'green' has only 3 images" in few.sentence
    assert "Use 2 to 3 folds" in few.next_step
    assert "only one class" in refusal(coloured("one", {"red": 9})).sentence
    assert "unlabelled" in refusal(coloured("none", {".": 9})).sentence
    copies = coloured("copies", {"red": 9, "green": 9}, side=24)
    for number in range(1, 9):  # copies stay together, so one image is as good as none
        (copies / f"green/{number:03}.png").write_bytes((copies / "green/000.png").read_bytes())
    assert "has only 1 groups" in refusal(copies).sentence
    masks = coloured("masks", {"images": 4, "masks": 4})
    assert "are masks" in refusal(masks).sentence


def test_groups_stay_together(world):
    settings = AuditSettings(group_by=r"(\d)\.png", folds=3)
    source = label_audit.build_index(unfreeze_source(world / "d"), strange_classes=True)
    index = source.take(np.flatnonzero(source.labels >= 0))
    folds, groups = label_audit.folds_of(settings, index, [[0, 13]])
    assert len(folds) == 3 and groups[0] == groups[13] and len(np.unique(groups)) == 9
    for training, test in folds:
        assert not set(groups[training]) & set(groups[test])


def unfreeze_source(path):
    from unfreeze.data.sources.open import open_source

    return open_source(str(path))


def test_weights_that_learned_these_labels_are_refused(coloured, tmp_path):
    """Their features repeat the labels, the wrong ones too; a frozen backbone knows none."""
    data = coloured("d", {"red": 6, "green": 6})
    how = {"arch": "unfreeze/tiny", "weights": "none", "epochs": 1, "device": "cpu"}
    trained = unfreeze.finetune(str(data), out=str(tmp_path / "full"), **how).run
    frozen = unfreeze.finetune(str(data), out=str(tmp_path / "frozen"), freeze="all", **how).run
    after = unfreeze.finetune(
        str(data), out=str(tmp_path / "after"), freeze="all", weights=trained, epochs=1
    ).run
    for run in (trained, after):
        with pytest.raises(WeightsError, match=r"trained on .* with their labels"):
            unfreeze.audit(str(data), str(tmp_path / "no"), weights=run)
    assert (
        unfreeze.audit(str(data), str(tmp_path / "a"), weights=frozen, image_size=16).images == 12
    )
    other = coloured("other", {"red": 5, "green": 7}, side=20)
    assert unfreeze.audit(str(other), str(tmp_path / "b"), weights=trained).images == 12


def test_classifiers_that_guess_are_named(tmp_path):
    rng = np.random.default_rng(1)
    for number in range(40):
        path = tmp_path / "d" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    result = unfreeze.audit(str(tmp_path / "d"), str(tmp_path / "out"), **TINY)
    assert [w.code for w in result.warnings] == ["nothing_learned"]
    assert "the suspects mean nothing" in (tmp_path / "out/audit.html").read_text()


def test_a_folder_is_needed(coloured):
    with pytest.raises(UsageError, match="needs an output folder"):
        unfreeze.audit(str(coloured("d", {"red": 5, "green": 5})), "", **TINY)
