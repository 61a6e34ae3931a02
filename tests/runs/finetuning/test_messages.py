"""Labels, groups and splits that stand elsewhere, through the command line."""

import csv
import io
import json
import shutil

import pytest

from unfreeze.cli.main import main
from unfreeze.errors import DataError
from unfreeze.runtime.terminal import Environment
from unfreeze.transfer.train_val_split import SplitOptions, split_train_val

TINY = "--arch unfreeze/tiny --image-size 16 --epochs 1 --batch-size 8 --device cpu --json"


def command(*words):
    world = Environment(io.StringIO(), io.StringIO())
    more = ["--json"] if words[0] == "evaluate" else TINY.split()
    code = main([*map(str, words), *more], world)
    out = world.stdout.getvalue()
    return code, json.loads(out) if out else None, world.stderr.getvalue()


def splits(run):
    with (run / "split.csv").open(newline="") as file:
        return {row["path"]: (row["label"], row["split"]) for row in csv.DictReader(file)}


@pytest.fixture
def flat(coloured):
    """Images `red_00.png` ... in one folder, two of each patient."""
    folder = coloured("made", {"red": 16, "blue": 16})
    (folder / "all").mkdir()
    for colour in ("red", "blue"):
        for place, file in enumerate(sorted((folder / colour).iterdir())):
            shutil.move(file, folder / "all" / f"{colour}_p{place // 2}_{place:02}.png")
        (folder / colour).rmdir()
    return folder / "all"


@pytest.fixture
def table(flat, tmp_path):
    path = tmp_path / "labels.csv"
    lines = [
        f"{file.stem},{file.name.split('_')[0]},{file.name.split('_')[1]}"
        for file in sorted(flat.iterdir())
    ]
    path.write_text("\n".join(["id,label,patient", *lines, "nobody,red,p9"]) + "\n")
    return path


def test_a_flat_folder_needs_labels_from_somewhere(flat, table, tmp_path):
    given = ("--weights", "none", "--dry-run")
    code, _, said = command("finetune", flat, *given)
    assert (code, "unlabelled" in said) == (3, True)
    for labels in (table, r"^([a-z]+)_"):
        code, plan, said = command("finetune", flat, "--labels", labels, *given)
        assert code == 0, said
        assert plan["classes"] == ["blue", "red"]
        assert plan["counts"] == {"blue": {"all": 16}, "red": {"all": 16}}
        assert "images: blue 16, red 16" in said
    code, _, said = command("finetune", flat, "--labels", table, *given)
    assert f"Lines of {table} that match no image: 1 (first: nobody)." in said
    assert command("finetune", flat, "--labels", "([A-Z]+)", *given)[0] == 2
    assert command("finetune", flat, "--labels", "no.csv", *given)[0] == 3


def test_groups_of_the_list_stay_on_one_side(flat, table, tmp_path):
    out = tmp_path / "run"
    given = ("--weights", "none", "--labels", table, "--group-by", "patient", "--val", "0.3")
    code, _, said = command("finetune", flat, "--out", out, *given)
    assert code == 0, said
    sides: dict[str, set[str]] = {}
    for path, (_, split) in splits(out).items():
        sides.setdefault(path.split("_")[1], set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert {"train"} in sides.values()
    assert {"val"} in sides.values()
    code, found, said = command("evaluate", out, flat, "--labels", table)
    assert code == 0, said
    assert (found["split"], found["n"]) == ("val", sum(s == "val" for _, s in splits(out).values()))
    code, _, said = command("evaluate", out, flat)
    assert (code, "Add --labels" in said) == (3, True)


def test_a_split_goes_from_run_to_run(flat, table, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    given = ("--weights", "none", "--seed")
    command("finetune", flat, "--out", first, "--labels", table, *given, 5)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(flat, elsewhere)
    for name in ("red_new.png", "blue_new.png"):
        shutil.copy(elsewhere / "red_p0_00.png", elsewhere / name)
    code, _, said = command(
        "finetune", elsewhere, "--out", second, "--split-from", first, *given, 9
    )
    assert code == 0, said
    assert splits(second) == splits(first)  # labels came along, too
    assert "2 images are not listed in" in said
    assert f"{first}/split.csv" in said
    code, found, said = command(
        "pretrain", elsewhere, "--out", tmp_path / "swav", "--split-from", first
    )
    assert code == 0, said
    train = {path for path, (_, split) in splits(first).items() if split == "train"}
    assert set(splits(tmp_path / "swav")) == train
    assert found["images"] == len(train)


def test_labels_that_changed_are_noticed_when_going_on(flat, table, tmp_path):
    out, given = tmp_path / "run", ("--weights", "none", "--labels", table)
    assert command("finetune", flat, "--out", out, *given)[0] == 0
    table.write_text(table.read_text().replace("red_p0_00,red", "red_p0_00,blue"))
    code, _, said = command("finetune", flat, "--out", out, "--resume", *given, "--epochs", 2)
    assert code != 0
    assert "images" in said


def test_a_given_split_that_parts_a_group_is_refused(flat, table):
    from unfreeze.data.index.index import TRAIN, VAL, build_index
    from unfreeze.data.sources.open import open_source

    index = build_index(open_source(str(flat)), labels=str(table))
    index.splits[:] = TRAIN
    index.splits[[1, 3]] = VAL
    everything = range(len(index))
    with pytest.raises(DataError, match="2 groups of --group-by patient are in both train and val"):
        split_train_val(index, _array(everything), SplitOptions(0, 0.2, group_by="patient"))
    index.splits[:4] = VAL
    index.splits[16:20] = VAL  # the patients p0 and p1 of both colours
    found = split_train_val(index, _array(everything), SplitOptions(0, 0.2, group_by="patient"))
    assert len(found.val) == 8


def _array(positions):
    import numpy as np

    return np.array(list(positions))


def test_an_unknown_class_stops_only_what_learns_from_labels(coloured, tmp_path):
    folder = coloured("odd", {"train/red": 12, "train/blue": 12, "test/green": 3})
    code, _, said = command("finetune", folder, "--weights", "none", "--dry-run")
    assert (code, "'green'" in said) == (3, True)
    assert command("pretrain", folder, "--out", tmp_path / "swav")[0] == 0
    world = Environment(io.StringIO(), io.StringIO())
    words = ["embed", str(tmp_path / "swav"), str(folder), "--out", str(tmp_path / "f.npz")]
    assert main(words, world) == 0, world.stderr.getvalue()
    code = main(["show", str(folder), "--out", str(tmp_path / "p.html")], world)
    assert code == 0
    words = ["export", str(tmp_path / "swav"), "--to", "safetensors", "--data", str(folder)]
    assert main([*words, "--out", str(tmp_path / "x")], world) == 0, world.stderr.getvalue()
