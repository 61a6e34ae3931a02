"""Segmentation through the command line: train, evaluate, predict, freeze, and what is refused."""

import ast
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.segmentation.conftest import CLASSES, scene, weights

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.cli.main import main
from unfreeze.models.build import build
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.tasks.segmentation.masks import read_mask

TINY = [
    *(
        "--arch",
        "smp/linknet/tu-mobilenetv3_small_050",
        "--weights",
        "none",
        "--image-size",
        "64",
        "--epochs",
        "2",
    ),
    *("--batch-size", "4", "--optimizer", "adamw", "--device", "cpu", "--precision", "fp32"),
]


LEARNS = ["--arch", "smp/unet/resnet18"]


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """A run of 12 epochs, which learns the scenes."""
    run = tmp_path_factory.mktemp("segmentation") / "run"
    assert main(["finetune", str(scenes), *TINY, *LEARNS, "--epochs", "12", "--out", str(run)]) == 0
    return run


def opened(path):
    with Image.open(path) as image:
        return np.asarray(image)


def truth(scenes, split):
    files = sorted((scenes / "masks" / split).glob("*.png"))
    return {path.stem: opened(path) for path in files}


def test_a_run_learns_and_its_files_say_so(trained, scenes):
    result = json.loads((trained / "result.json").read_text())
    lines = [line for line in read_metrics(trained) if line["split"] == "val"]
    assert result["task"] == "segmentation" and result["classes"] == list(CLASSES)
    assert result["val_metrics"]["miou"] == max(line["miou"] for line in lines) > 0.7
    card = json.loads((trained / "model/model.json").read_text())
    assert (card["task"], card["arch"]) == ("segmentation", "smp/unet/resnet18")
    assert card["classes"] == list(CLASSES) and card["outputs"] == 3
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert evaluation["iou"].keys() == set(CLASSES) and evaluation["split"] == "val"
    with (trained / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == [f"masks/val/{n:02}.png" for n in range(6)]
    assert (trained / "report.html").stat().st_size > 10_000


def test_evaluate_equals_the_masks_that_predict_writes(trained, scenes, tmp_path, run_json):
    evaluated = run_json("evaluate", trained, scenes)
    images = sorted((scenes / "images/test").glob("*.png"))
    predicted = run_json("predict", trained, *images, "--out", tmp_path / "p", "--overlay")
    table = np.zeros((3, 3), np.int64)
    for row, (name, mask) in zip(predicted, truth(scenes, "test").items(), strict=True):
        assert row["path"].endswith(f"{name}.png") and row["mask"].endswith(f"p/{name}.png")
        with Image.open(row["mask"]) as image:
            assert image.mode == "P" and image.size == (96, 64)
            ids = np.asarray(image)
        np.add.at(table, (mask.ravel(), ids.ravel()), 1)
        shares = {name: float((ids == number).mean()) for number, name in enumerate(CLASSES)}
        assert row["shares"] == pytest.approx(shares)
        assert (tmp_path / "p/overlays" / f"{name}.jpg").stat().st_size > 500
    assert evaluated["confusion"] == table.tolist()
    union = table.sum(0) + table.sum(1) - table.diagonal()
    ious = table.diagonal() / union
    assert evaluated["n"] == 8 and evaluated["split"] == "test"
    assert evaluated["miou"] == pytest.approx(ious.mean())
    assert evaluated["iou"] == pytest.approx(dict(zip(CLASSES, ious.tolist(), strict=True)))
    assert evaluated["pixel_accuracy"] == pytest.approx(table.trace() / table.sum())
    own_loss = json.loads((trained / "model/model.json").read_text())["task_state"]["loss"]
    assert own_loss == "ce+dice" and evaluated["loss"] > 0
    low, high = evaluated["interval"]
    assert low <= evaluated["miou"] <= high and low < high
    assert evaluated["seen_in_training"] == 0 and evaluated["classes"] == list(CLASSES)


def test_predictions_without_a_folder_and_into_a_foreign_one(
    trained, scenes, tmp_path, run_json, fails
):
    image = scenes / "images/test/00.png"
    (row,) = run_json("predict", trained, image)
    assert row["mask"] is None and sum(row["shares"].values()) == pytest.approx(1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/00.png").write_bytes(b"mine")
    assert "not empty" in fails(2, "predict", trained, image, "--out", tmp_path / "mine")
    assert "needs a folder" in fails(2, "predict", trained, image, "--overlay")
    said = fails(2, "predict", trained, image, "--explain", tmp_path / "why")
    assert "--explain is for classification" in said
    inside = fails(2, "predict", trained, scenes / "images/test", "--out", scenes / "images/test")
    assert "--out" in inside and (scenes / "images/test/00.png").stat().st_size > 500
    for _ in range(2):  # our own folder is written again
        run_json("predict", trained, image, "--out", tmp_path / "p")


def test_in_python(trained, scenes):
    evaluation = unfreeze.evaluate(trained, str(scenes), split="val")
    assert 0.7 < evaluation.miou <= 1 and "disc" in str(evaluation)
    with pytest.raises(AttributeError, match="nothing"):
        evaluation.nothing  # noqa: B018
    model = unfreeze.load(trained)
    assert model.classes == CLASSES
    images = [
        Image.fromarray(opened(scenes / "images/test/00.png")),
        np.zeros((40, 50, 3), np.uint8),
    ]
    masks = model.predict(images)
    assert [mask["ids"].shape for mask in masks] == [(64, 96), (40, 50)]
    assert (masks[0]["ids"] == truth(scenes, "test")["00"]).mean() > 0.8


@pytest.mark.parametrize(
    ("arch", "network", "inside"),
    [
        ("torchvision/resnet18", "smp/unet/resnet18", "encoder."),
        ("unfreeze/small", "smp/unet/unfreeze-small", "encoder.model."),
    ],
)
def test_frozen_encoder_of_own_pretraining_stays_as_it_is(
    scenes, tmp_path, run_json, arch, network, inside
):
    pretrained = tmp_path / "ssl"
    small = ["--size-crops", "32", "--nmb-crops", "2", "--nmb-prototypes", "8"]
    words = ["--arch", arch, "--stem", "imagenet", "--epochs", "1", *small, "--queue-length", "0"]
    run_json("pretrain", scenes / "images", "--out", pretrained, *words, "--batch-size", "8")
    run = tmp_path / "run"
    result = run_json(
        *("finetune", scenes, "--weights", pretrained, "--freeze", "all", "--image-size", "64"),
        *("--epochs", "1", "--out", run),
    )
    assert result["arch"] == network and result["weights_matched"] == 1
    assert result["frozen_unchanged"] is True and "val_miou" in result
    ssl, model = load_model(pretrained)[0], load_model(run)[0]
    assert all(torch.equal(model[f"{inside}{name}"], tensor) for name, tensor in ssl.items())
    encoder = sum(p.numel() for n, p in build(arch).named_parameters()
                  if not n.startswith(("fc.", "head.")))  # fmt: skip
    assert result["parameters_frozen"] == encoder


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [("stage:1", ("encoder.conv1", "encoder.bn1", "encoder.layer1")), ("norms", None)],
)
def test_parts_of_the_encoder_are_frozen(scenes, tmp_path, run_json, freeze, frozen):
    run = tmp_path / "run"
    words = [*TINY, *LEARNS, "--epochs", "1", "--freeze", freeze]
    result = run_json("finetune", scenes, *words, "--out", run)
    assert result["frozen_unchanged"] is True and result["parameters_frozen"] > 0
    network = build("smp/unet/resnet18", classes=3)
    if frozen is not None:
        sizes = {n: p.numel() for n, p in network.named_parameters()}
        wanted = sum(size for name, size in sizes.items() if name.startswith(frozen))
        assert result["parameters_frozen"] == wanted


def test_encoder_weights_by_name_of_timm(scenes, tmp_path, run_json, fails):
    torch.manual_seed(1)
    backbone = build("timm/tf_efficientnet_lite0")
    torch.save(backbone.state_dict(), tmp_path / "w.pth")
    words = ["--image-size", "64", "--epochs", "1", "--limit", "4", "--batch-size", "2"]
    arch = ["--arch", "smp/fpn/tu-tf_efficientnet_lite0", "--freeze", "all"]
    run_json("finetune", scenes, "--weights", tmp_path / "w.pth", *arch, *words,
             "--out", tmp_path / "r")  # fmt: skip
    model = load_model(tmp_path / "r")[0]
    for name in ("conv_stem.weight", "blocks.6.0.bn3.running_var"):
        assert torch.equal(model[f"encoder.model.{name}"], backbone.state_dict()[name])
    wrong = ["--arch", "smp/unet/resnet34", "--weights", tmp_path / "w.pth"]
    assert "holds 0.0%" in fails(4, "finetune", scenes, *wrong, *words, "--out", tmp_path / "x")
    none = ["--arch", "smp/unet/mit_b0", "--weights", "imagenet"]
    assert "no network of torchvision or timm" in fails(
        2, "finetune", scenes, *none, *words, "--out", tmp_path / "x"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arch", "smp/unett/resnet18"), "Unknown decoder"),
        (("--arch", "smp/unet/resnet19"), "Did you mean resnet1"),
        (("--arch", "smp/unet/tu-resnet19"), "timm has no network"),
        (("--arch", "smp/unet"), "no segmentation network"),
        (("--arch", "resnet18"), "Use smp/unet/resnet18"),
        (("--loss", "dise"), "Invalid value for --loss"),
        (("--mixup", "0.2"), "has no --mixup"),
        (("--labels-per-class", "3"), "has no --labels-per-class"),
        (("--head", "mlp:8"), "has no --head"),
        (("--augment", "digits"), "has no --augment"),
        (("--cache", "features"), "has no --cache"),
        (("--labels", "x.csv"), "segmentation learns masks"),
        (("--select", "accuracy"), "has no --select"),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_run(scenes, tmp_path, fails, words, said):
    arguments = dict(zip(TINY[::2], TINY[1::2], strict=True))
    arguments |= {"--task": "segmentation"} | dict([words])
    flat = [word for pair in arguments.items() for word in pair]
    assert said in fails(2, "finetune", scenes, *flat, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def copy_of(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / "copy")


def test_masks_that_do_not_fit_are_named(scenes, tmp_path, fails):
    data = copy_of(scenes, tmp_path)
    mask, words = data / "masks/train/03.png", [*TINY, "--out", tmp_path / "run"]
    good = mask.read_bytes()
    Image.fromarray(np.full((64, 96), 9, np.uint8)).save(mask)
    said = fails(3, "finetune", data, *words)
    assert "masks/train/03.png: the value 9 (6,144 pixels) is not in classes.csv" in said
    Image.fromarray(np.zeros((96, 64), np.uint8)).save(mask)
    said = fails(3, "finetune", data, *words)
    assert "images/train/03.png has 96x64 pixels, its mask masks/train/03.png 64x96" in said
    mask.write_bytes(good[:100])
    assert "The mask masks/train/03.png cannot be read" in fails(3, "finetune", data, *words)
    mask.write_bytes(good)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(opened(data / "images/train/03.png"))
    image.save(data / "images/train/03.png", exif=exif)
    assert "its mask masks/train/03.png is not" in fails(3, "finetune", data, *words)
    exif[0x0112] = 3
    image.save(data / "images/train/03.png", exif=exif)
    assert "cannot be seen" in fails(3, "finetune", data, *words)
    assert not (tmp_path / "run").exists()
    exif[0x0112] = 6  # the mask is turned like the image that is shown
    image.save(data / "images/train/03.png", exif=exif)
    Image.fromarray(np.rot90(opened(mask), -1).copy()).save(mask)
    assert main(["finetune", *map(str, [data, *words, "--dry-run"])]) == 0


def test_a_single_mask_is_no_class(scenes, tmp_path, fails):
    for kind in ("images", "masks"):
        (tmp_path / "one" / kind).mkdir(parents=True)
        source = scenes / kind / "train/00.png"
        (tmp_path / "one" / kind / "00.png").write_bytes(source.read_bytes())
    said = fails(3, "finetune", tmp_path / "one", "--out", tmp_path / "run")
    assert "There is only one label in" in said and "00.png" in said


def test_binary_masks_colours_and_ignored_values(scenes, tmp_path, run_json):
    data = copy_of(scenes, tmp_path)
    (data / "classes.csv").unlink()
    for path in data.glob("masks/*/*.png"):
        ids = opened(path)
        Image.fromarray(np.where(ids == 1, 255, 0).astype(np.uint8)).save(path)
    binary = run_json("finetune", data, *TINY, "--epochs", "1", "--out", tmp_path / "binary")
    assert binary["classes"] == ["background", "foreground"]
    (row,) = run_json("predict", tmp_path / "binary", data / "images/test/00.png",
                      "--out", tmp_path / "pb")  # fmt: skip
    assert set(np.unique(opened(row["mask"]))) <= {0, 255}
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    for path in scenes.glob("masks/*/*.png"):
        ids = opened(path)
        Image.fromarray(palette[ids]).save(data / path.relative_to(scenes))
    table = tmp_path / "colours.csv"
    table.write_text("r,g,b,name\n0,0,0,void\n255,0,0,disc\n0,0,255,square\n")
    coloured = run_json(
        "finetune", data, *TINY, "--mask-classes", table, "--out", tmp_path / "colours"
    )
    assert coloured["classes"] == ["disc", "square"]
    evaluated = run_json("evaluate", tmp_path / "colours", data)
    counted = sum((opened(p) > 0).sum() for p in scenes.glob("masks/test/*.png"))
    assert np.array(evaluated["confusion"]).sum() == counted  # the ground is ignored
    (row,) = run_json("predict", tmp_path / "colours", data / "images/test/00.png",
                      "--out", tmp_path / "pc")  # fmt: skip
    values = read_mask(Path(row["mask"]).read_bytes(), "m", colours=True)
    assert set(np.unique(values).tolist()) <= {0xFF0000, 0x0000FF}


def test_masks_elsewhere_a_table_and_a_split_out_of_train(scenes, tmp_path, run_json):
    data = tmp_path / "flat"
    (data / "images").mkdir(parents=True)
    (data / "m").mkdir()
    rows = []
    for path in scenes.glob("images/train/*.png"):
        shutil.copy(path, data / "images" / path.name)
        shutil.copy(scenes / "masks/train" / path.name, data / "m" / path.name)
        rows.append(f"images/{path.name},m/{path.name},{int(path.stem) // 4}")
    words = [*TINY, "--epochs", "1", "--task", "segmentation"]
    one = run_json("finetune", data / "images", *words, "--masks", data / "m",
                   "--out", tmp_path / "a")  # fmt: skip
    assert one["images"] + one["val_images"] == 16 and one["val_images"] >= 2
    (data / "t.csv").write_text("\n".join(["path,mask,group", *rows]) + "\n")
    two = run_json("finetune", data / "t.csv", *TINY, "--epochs", "1", "--out", tmp_path / "b")
    assert two["classes"] == ["0", "1", "2"] and two["images"] + two["val_images"] == 16
    with (tmp_path / "b/split.csv").open() as stream:
        splits = list(csv.DictReader(stream))
    groups = [(int(row["path"][7:9]) // 4, row["split"]) for row in splits]
    assert len(set(groups)) == 4  # no group in both splits
    again = run_json("evaluate", tmp_path / "a", data / "images", "--masks", data / "m")
    assert again["n"] == one["val_images"] and again["miou"] == pytest.approx(one["val_miou"])


@pytest.mark.slow
def test_four_images_can_be_learned_by_heart(scenes, tmp_path, run_json):
    words = dict(zip(TINY[::2], TINY[1::2], strict=True)) | dict([LEARNS])
    words |= {"--epochs": "40", "--augment": "none", "--val": "0", "--limit": "4", "--lr": "0.002"}
    data = tmp_path / "four"
    for kind in ("images", "masks"):
        shutil.copytree(scenes / kind / "train", data / kind)
    flat = [word for pair in words.items() for word in pair]
    run_json("finetune", data, *flat, "--out", tmp_path / "run")
    with (tmp_path / "run/split.csv").open() as stream:
        trained = [row["path"] for row in csv.DictReader(stream) if row["split"] == "train"]
    assert len(trained) == 4
    four = tmp_path / "only"
    for kind in ("images", "masks"):
        (four / kind).mkdir(parents=True)
        for name in trained:
            file = name.replace("images", kind)
            shutil.copy(data / file, four / file)
    evaluated = run_json("evaluate", tmp_path / "run", four)
    assert evaluated["seen_in_training"] == 4 and evaluated["miou"] > 0.95


def test_permuting_the_values_of_the_masks_changes_no_metric(scenes, tmp_path, run_json):
    """The same network with its outputs permuted, on permuted masks."""
    run = tmp_path / "a"
    run_json("finetune", scenes, *TINY, "--epochs", "1", "--out", run)
    first = run_json("evaluate", run, scenes)
    data, order = copy_of(scenes, tmp_path), np.array([2, 0, 1], np.uint8)
    for path in data.glob("masks/*/*.png"):
        Image.fromarray(order[opened(path)]).save(path)
    card = json.loads((run / "model/model.json").read_text())
    from unfreeze.checkpoints.model_file import ModelCard, load_model, save_model

    tensors, card = load_model(run)
    for part in ("weight", "bias"):
        name = f"segmentation_head.0.{part}"
        tensors[name] = tensors[name][torch.from_numpy(np.argsort(order))]
    table = {**card.task_state["table"]}
    table["names"] = [CLASSES[i] for i in np.argsort(order)]
    state = {**card.task_state, "table": table}
    values = {**card.as_dict(), "classes": table["names"], "task_state": state}
    save_model(tmp_path / "b", tensors, ModelCard.from_dict(values))
    second = run_json("evaluate", tmp_path / "b", data)
    for name in ("miou", "dice", "pixel_accuracy", "iou"):
        assert second[name] == pytest.approx(first[name], rel=1e-6)


def test_large_images_are_cut_into_tiles(tmp_path, run_json, capsys):
    draw = np.random.default_rng(1)
    for number in range(6):
        for kind in ("images", "masks"):
            (tmp_path / "d" / kind).mkdir(parents=True, exist_ok=True)
        image, mask = scene(draw, (150, 200 + number))
        Image.fromarray(image).save(tmp_path / "d/images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "d/masks" / f"{number}.png")
    run = tmp_path / "run"
    result = run_json("finetune", tmp_path / "d", *TINY, "--fit", "tile", "--out", run)
    card = json.loads((run / "model/model.json").read_text())
    assert card["preprocess"]["fit"] == "tile" and card["preprocess"]["image_size"] == 64
    evaluated = run_json("evaluate", run, tmp_path / "d")
    assert evaluated["miou"] == pytest.approx(result["val_miou"])
    (row,) = run_json("predict", run, tmp_path / "d/images/5.png", "--out", tmp_path / "p")
    assert opened(row["mask"]).shape == (150, 205)


def test_the_plan_says_what_is_decided(scenes, tmp_path, capsys):
    assert main(["finetune", str(scenes), *TINY, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    for words in ("64x96", "whole images", "a decoder needs maps", "16 training images"):
        assert words in said


def test_the_same_command_gives_the_same_weights_twice(scenes, tmp_path):
    for name in ("a", "b"):
        assert main(["finetune", str(scenes), *TINY, "--out", str(tmp_path / name)]) == 0
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "to",
    ["onnx", *(pytest.param(to, marks=pytest.mark.slow) for to in ("torchscript", "safetensors"))],
)
def test_exports_give_the_same_maps_and_readme_runs(trained, scenes, tmp_path, run_json, to):
    out, image = tmp_path / "out", scenes / "images/test/00.png"
    result = run_json("export", trained, "--to", to, "--data", scenes / "images", "--out", out)
    assert result["matched"] is True and result["classes"] == list(CLASSES)
    readme = (out / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    Image.fromarray(opened(image)).save(out / "image.png")
    code = code.replace("image.jpg", "image.png")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=out, capture_output=True, text=True, check=True
    )
    (row,) = run_json("predict", trained, image)
    assert ast.literal_eval(done.stdout) == pytest.approx(row["shares"], abs=2e-3)


def test_other_libraries_have_no_such_network(trained, tmp_path, fails):
    for to in ("timm", "torchvision"):
        assert "has no smp/unet/resnet18" in fails(
            2, "export", trained, "--to", to, "--out", tmp_path / "x"
        )


def test_the_report_shows_images_classes_and_masks(trained):
    page = (trained / "report.html").read_text(encoding="utf-8")
    for words in ("Lowest mIoU", "IoU", *CLASSES):
        assert words in page
    with np.load(trained / "examples.npz") as arrays:
        worst = arrays["probability"][arrays["kind"] == "worst"].tolist()
    with (trained / "predictions.csv").open() as stream:
        miou = sorted(float(row["miou"]) for row in csv.DictReader(stream))
    assert worst == pytest.approx(miou[:6])


def test_scan_and_show_check_the_masks_and_do_not_take_them_for_images(scenes, tmp_path, run_json):
    data = copy_of(scenes, tmp_path)
    clean = run_json("scan", data)
    assert clean["pictures"] == 30 and not [p for p in clean["problems"] if "mask" in p["reason"]]
    assert any(note.startswith("disc: in ") for note in clean["notes"])
    masks = data / "masks/train"
    Image.fromarray(np.full((64, 96), 9, np.uint8)).save(masks / "01.png")
    Image.fromarray(np.zeros((64, 90), np.uint8)).save(masks / "02.png")
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(masks / "03.png")
    (masks / "04.png").unlink()
    (masks / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    found = {p["path"]: (p["reason"], p["detail"]) for p in run_json("scan", data)["problems"]
             if "mask" in p["reason"]}  # fmt: skip
    assert found["images/train/01.png"] == (
        "unknown mask value", "masks/train/01.png: 9 (6,144 pixels)"
    )  # fmt: skip
    assert found["images/train/02.png"][0] == "mask of another size"
    assert found["images/train/03.png"][0] == "empty mask"
    assert found["images/train/04.png"][0] == "no mask"
    assert found["images/train/05.png"][0] == "unreadable mask" and len(found) == 5
    shown = run_json("show", data, "--out", tmp_path / "page.html")
    assert shown["images"] == 30 and shown["classes"] == list(CLASSES)
    assert {p["path"] for p in shown["problems"]} >= set(found)
    assert (tmp_path / "page.html").read_text().count(">mask<") >= 8


def test_the_other_commands_know_segmentation_models(trained, scenes, tmp_path, run_json, fails):
    whole = run_json("summary", "smp/unet/resnet18", "--classes", "3")
    own = run_json("summary", trained)
    assert whole["parameters_total"] == own["parameters_total"]
    assert [stage["name"] for stage in own["stages"]][1:] == [
        f"encoder.layer{number}" for number in range(1, 5)
    ]
    heads = [layer for layer in own["layers"] if layer["name"].startswith("decoder")]
    assert heads and all(layer["stage"] is None for layer in heads)
    found = run_json("inspect", trained / "model/model.safetensors")
    assert found["arch"] == "smp/unet/resnet18" and found["matched"] == 1
    words = [scenes / "images/test", "--out", tmp_path / "f.npz"]
    assert run_json("embed", trained, *words)["images"] == 8
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["features"].shape == (8, 512)
    said = fails(2, "pretrain", scenes, "--arch", "smp/unet/resnet18", "--out", tmp_path / "p")
    assert "Use --arch torchvision/resnet18" in said
    said = fails(2, "finetune", "digits", "--weights", trained, "--out", tmp_path / "d")
    assert "these labels are classes" in said
    assert not any((tmp_path / name).exists() for name in "pd")


def test_weights_of_a_segmentation_run_start_another(trained, scenes, tmp_path, run_json, fails):
    run = tmp_path / "run"
    words = ["--image-size", "64", "--epochs", "1", "--freeze", "all", "--limit", "4"]
    result = run_json("finetune", scenes, "--weights", trained, *words, "--out", run)
    assert result["arch"] == "smp/unet/resnet18" and result["weights_matched"] == 1
    first, second = load_model(trained)[0], load_model(run)[0]
    encoder = [name for name in first if name.startswith("encoder.")]
    assert encoder and all(torch.equal(first[name], second[name]) for name in encoder)
    other = ["--arch", "smp/fpn/resnet34", *words, "--out", tmp_path / "x"]
    assert "is not that of smp/fpn/resnet34" in fails(
        4, "finetune", scenes, "--weights", trained, *other
    )


def test_pretraining_leaves_the_masks_out(scenes, tmp_path, capsys):
    words = ["--arch", "unfreeze/tiny", "--epochs", "1", "--size-crops", "16", "--nmb-crops", "2"]
    words += ["--nmb-prototypes", "8", "--queue-length", "0", "--batch-size", "8"]
    assert main(["pretrain", str(scenes), *words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "30 masks beside the images are not used." in said
    with (tmp_path / "run/split.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 16 and all(row["path"].startswith("images/train/") for row in rows)


def test_evaluation_uses_the_loss_and_the_weights_of_the_training(scenes, tmp_path, run_json):
    words = ["--loss", "focal", "--class-weights", "balanced", "--epochs", "1"]
    run = tmp_path / "run"
    result = run_json("finetune", scenes, *TINY, *words, "--select", "last", "--out", run)
    evaluated = run_json("evaluate", run, scenes, "--split", "val")
    assert evaluated["loss"] == pytest.approx(result["val_loss"], rel=1e-5)
    assert evaluated["miou"] == pytest.approx(result["val_miou"], rel=1e-6)


def test_masks_elsewhere_say_what_is_learned(scenes, tmp_path, run_json, fails):
    data = tmp_path / "days"
    for path in scenes.glob("images/train/*.png"):
        for kind in ("images", "masks"):
            folder = data / kind / f"day{int(path.stem) % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(scenes / kind / "train" / path.name, folder / path.name)
    words = [*TINY, "--epochs", "1", "--masks", data / "masks"]
    result = run_json("finetune", data / "images", *words, "--out", tmp_path / "run")
    assert result["task"] == "segmentation"
    said = fails(2, "finetune", data / "images", *words, "--task", "classification",
                 "--out", tmp_path / "x")  # fmt: skip
    assert "--masks is for --task segmentation" in said
    said = fails(2, "finetune", "digits", "--loss", "dice", "--out", tmp_path / "x")
    assert "--loss is for --task multilabel or segmentation; this is classification" in said


def test_a_table_of_classes_beside_a_csv_is_read(scenes, tmp_path, run_json):
    data = copy_of(scenes, tmp_path)
    (data / "classes.csv").write_text("id,name\n0,void\n1,disc\n2,square\n")
    rows = [f"images/train/{p.name},masks/train/{p.name}" for p in data.glob("images/train/*")]
    (data / "t.csv").write_text("\n".join(["path,mask", *rows]) + "\n")
    result = run_json("finetune", data / "t.csv", *TINY, "--epochs", "1", "--out", tmp_path / "r")
    assert result["classes"] == ["disc", "square"]


def test_a_resumed_run_refuses_other_masks(scenes, tmp_path, stopped_after, fails):
    data = copy_of(scenes, tmp_path)
    rows = [f"images/train/{p.name},masks/train/{p.name}" for p in data.glob("images/train/*")]
    (data / "t.csv").write_text("\n".join(["path,mask", *rows]) + "\n")
    words = ["finetune", data / "t.csv", *TINY, "--out", tmp_path / "run"]
    with stopped_after(3):
        assert main([*map(str, words)]) == 130
    mask = data / "masks/train/03.png"
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(mask)
    assert "The dataset has changed" in fails(3, *words, "--resume")


def test_names_of_masks_are_never_shared():
    from unfreeze.runs.mask_prediction import mask_names

    for names in (["../a/1.jpg", "a/1.jpg"], ["1.jpg", "1.png", "1.jpg.jpg"], ["x/1.jpg"] * 2):
        assert len({*mask_names(names)}) == len(names)
    assert mask_names(["d/a/1.jpg", "d/b/1.jpg"]) == ["a/1.png", "b/1.png"]


def test_predict_leaves_out_the_masks_of_a_folder(trained, scenes, run_json):
    rows = run_json("predict", trained, scenes)
    assert len(rows) == 30 and all("/images/" in row["path"] for row in rows)


def test_the_bootstrap_by_counts_is_the_bootstrap(trained):
    from unfreeze.runs.task_evaluation import bootstrap_intervals
    from unfreeze.tasks.segmentation.task import SegmentationTask

    task = SegmentationTask()
    task.outputs = 3
    draw = np.random.default_rng(0)
    outputs = torch.from_numpy(draw.integers(0, 50, (40, 10)).astype(np.float64))
    outputs[:, [0, 4, 8]] *= 4
    fast = bootstrap_intervals(task, outputs, torch.zeros(40))
    task.resampled = lambda *_: None  # type: ignore[method-assign]
    slow = bootstrap_intervals(task, outputs, torch.zeros(40))
    for name in ("miou", "dice", "pixel_accuracy"):
        assert fast[name] == pytest.approx(slow[name], abs=0.004)


def test_faces_with_masks_are_classified_as_before(tmp_path, run_json):
    draw = np.random.default_rng(0)
    for name in ("with_mask", "without_mask"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 255, (16, 16, 3)).astype(np.uint8)
            for ending in ("jpg", "png"):
                Image.fromarray(pixels).save(tmp_path / "faces" / name / f"{number}.{ending}")
    words = ["--arch", "unfreeze/tiny", "--weights", "none", "--epochs", "1"]
    result = run_json("finetune", tmp_path / "faces", *words, "--out", tmp_path / "run")
    assert result["task"] == "classification" and result["classes"] == ["with_mask", "without_mask"]


def test_labels_of_a_file_are_classes_although_there_are_masks(scenes, tmp_path, run_json):
    rows = [f"images/train/{n:02}.png,{'ab'[n % 2]}" for n in range(16)]
    (tmp_path / "l.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    words = ["--arch", "unfreeze/tiny", "--weights", "none", "--epochs", "1"]
    result = run_json("finetune", scenes, "--labels", tmp_path / "l.csv", *words,
                      "--out", tmp_path / "run")  # fmt: skip
    assert result["task"] == "classification" and result["classes"] == ["a", "b"]


def test_scan_says_what_keeps_it_from_pairing(scenes, tmp_path, run_json):
    data = copy_of(scenes, tmp_path)
    shutil.copy(data / "images/train/00.png", data / "images/train/00.webp")
    found = run_json("scan", data)
    assert found["pictures"] == 31
    assert any("would have the same mask" in note for note in found["notes"])


def test_the_loss_of_a_large_map_is_taken_at_the_same_positions(monkeypatch):
    from unfreeze.tasks.segmentation import task as module

    task = module.SegmentationTask()
    task.outputs, task.names = 3, ["m"]
    ids = np.random.default_rng(0).integers(0, 3, (60, 90)).astype(np.uint8)
    task._held[0] = ids
    logits = 20.0 * torch.nn.functional.one_hot(torch.from_numpy(ids).long(), 3).permute(2, 0, 1)
    for pixels in (1 << 18, 500):  # every position, and every fourth
        monkeypatch.setattr(module, "LOSS_PIXELS", pixels)
        assert task.summarize(logits[None], torch.tensor([0]))[0, -1] < 1e-3


def test_infinite_outputs_are_no_mask(trained, scenes, tmp_path, fails, monkeypatch):
    from unfreeze.transfer.predictor import InferenceNetwork

    monkeypatch.setattr(InferenceNetwork, "forward", lambda self, images: self.network(images) / 0)
    words = [trained, scenes / "images/test/00.png", "--out", tmp_path / "p"]
    assert "are NaN or infinite" in fails(4, "predict", *words)
    assert not list((tmp_path / "p").glob("*.png"))
