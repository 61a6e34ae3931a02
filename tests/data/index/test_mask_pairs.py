"""Images and masks are found in every usual layout, and wrong pairs are refused."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from unfreeze.data.index.index import NONE, TEST, TRAIN, VAL
from unfreeze.data.index.mask_pairs import (
    has_masks,
    index_of_pairs,
    mask_reader,
    mask_rows,
)
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number) if not name.endswith((".csv", ".txt")) else b"")
    return folder


def pairs(folder, masks=None):
    source = open_source(str(folder))
    index = index_of_pairs(source, masks and open_source(str(masks)))
    found = [index.classes[label] for label in index.labels.tolist()]
    return dict(zip(index.paths, found, strict=True)), index


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.jpg", "masks/a.png"),
        ("images/a.jpg", "labels/a_label.png"),
        ("Images/a.png", "Annotations/a_mask.png"),
        ("JPEGImages/a.jpg", "SegmentationClass/a.png"),
        ("wrap/images/x/a.png", "wrap/masks/x/a.png"),
        ("a.png", "masks/a.png"),
        ("leftImg8bit/b/a_leftImg8bit.png", "gtFine/b/a_gtFine_labelIds.png"),
    ],
)
def test_layouts_without_splits(tmp_path, image, mask):
    mask = mask.replace("_gtFine_labelIds", "_labelIds")
    other = image.replace("a.", "b.").replace("a_l", "b_l")
    write(tmp_path, image, mask, other, mask.replace("a.png", "b.png").replace("a_", "b_"))
    found, index = pairs(tmp_path)
    assert found[image] == mask and len(found) == 2 and set(index.splits) == {NONE}
    assert has_masks(open_source(str(tmp_path)))


@pytest.mark.parametrize(
    "layout",
    [
        ("images/{}/a.png", "masks/{}/a.png"),
        ("{}/images/a.png", "{}/masks/a.png"),
        ("{}/a.png", "{}annot/a.png"),
        ("{}_images/a.png", "{}_masks/a.png"),
    ],
)
def test_splits_above_below_and_in_the_names(tmp_path, layout):
    names = {"train": TRAIN, "val": VAL, "test": TEST}
    write(tmp_path, *(part.format(split) for split in names for part in layout))
    found, index = pairs(tmp_path)
    assert found == {layout[0].format(s): layout[1].format(s) for s in names}
    splits = dict(zip(index.paths, index.splits.tolist(), strict=True))
    assert splits == {layout[0].format(s): number for s, number in names.items()}


def test_archives_and_a_folder_of_masks_elsewhere(tmp_path):
    data = write(tmp_path / "d", "images/train/a.jpg", "images/train/b.jpg")
    write(tmp_path / "m", "train/a.png", "train/b.png")
    write(tmp_path / "flat", "a_mask.png", "b.png")
    for masks, names in (("m", ["train/a.png", "train/b.png"]), ("flat", ["a_mask.png", "b.png"])):
        found, index = pairs(data, tmp_path / masks)
        assert list(found.values()) == names and index.splits.tolist() == [TRAIN, TRAIN]
    whole = write(tmp_path / "w", "images/a.png", "masks/a.png")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for path in whole.rglob("*.png"):
            archive.write(path, path.relative_to(whole))
    with tarfile.open(tmp_path / "w.tar.gz", "w:gz") as archive:
        archive.add(whole, "top")
    for name in ("w.zip", "w.tar.gz"):
        source = open_source(str(tmp_path / name))
        index = index_of_pairs(source)
        assert mask_reader(source, None)(index.classes[0]) == png(1)


def test_a_table_of_paths(tmp_path):
    write(tmp_path, "x/a.png", "y/a.png", "x/b.png", "y/b.png", "x/c.png")
    rows = ["path,mask,split,group", "x/a.png,y/a.png,train,1", "x/b.png,y/b.png,val,2"]
    (tmp_path / "t.csv").write_text("\n".join([*rows, "x/c.png,,train,1"]) + "\n")
    found, index = pairs(tmp_path / "t.csv")
    assert found == {"x/a.png": "y/a.png", "x/b.png": "y/b.png"}
    assert index.splits.tolist() == [TRAIN, VAL] and index.groups == ["1", "2"]
    assert "1 image has no mask: not used." in index.notes
    source = open_source(str(tmp_path / "t.csv"))
    assert has_masks(source) and mask_reader(source, None)("y/b.png") == png(3)


def test_images_without_a_mask_are_counted_and_lists_of_voc_are_splits(tmp_path):
    names = [f"JPEGImages/{n}.jpg" for n in "abcd"] + [f"SegmentationClass/{n}.png" for n in "abc"]
    write(tmp_path, *names)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    found, index = pairs(tmp_path)
    assert list(found) == names[:3] and index.splits.tolist() == [TRAIN, TRAIN, VAL]
    assert "1 image has no mask: not used." in index.notes


def test_class_folders_are_no_masks(tmp_path):
    write(tmp_path, "cat/a.png", "dog/b.png")
    assert not has_masks(open_source(str(tmp_path)))
    write(tmp_path / "two", "images/a.png", "labels/b.png", "labels/c.png")
    assert not has_masks(open_source(str(tmp_path / "two")))
    with pytest.raises(DataError, match="no image has a mask of its name"):
        pairs(tmp_path)


def test_two_masks_of_one_image_are_refused_or_the_usual_one_is_taken(tmp_path):
    write(tmp_path / "c", "images/a.png", "gtFine/a_color.png", "gtFine/a_labelIds.png")
    write(tmp_path / "c", "gtFine/a_labelTrainIds.png")
    assert pairs(tmp_path / "c")[0] == {"images/a.png": "gtFine/a_labelTrainIds.png"}
    write(tmp_path / "d", "images/a.png", "masks/a_gt.png", "labels/a_gt.png")
    with pytest.raises(DataError, match="are masks of the same image"):
        pairs(tmp_path / "d")


def test_the_own_name_goes_before_an_ending(tmp_path):
    names = ["images/1.jpg", "images/1_mask.jpg", "masks/1.png", "masks/1_mask.png"]
    assert pairs(write(tmp_path / "a", *names))[0] == {names[0]: names[2], names[1]: names[3]}
    write(tmp_path / "b", "images/s.jpg", "images/s_l.jpg", "masks/s_l.png")
    assert pairs(tmp_path / "b")[0] == {"images/s_l.jpg": "masks/s_l.png"}
    write(tmp_path / "c", "pics/1.jpg", "pics/1_mask.jpg")
    write(tmp_path / "m", "pics/1.png", "pics/1_mask.png")
    found, _ = pairs(tmp_path / "c", tmp_path / "m")
    assert found == {f"pics/{n}.jpg": f"pics/{n}.png" for n in ("1", "1_mask")}


def test_masks_inside_of_the_data_are_no_images(tmp_path):
    write(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "maps") for n in "abc"))
    found, _ = pairs(tmp_path, tmp_path / "maps")
    assert found == {f"images/{n}.png": f"{n}.png" for n in "abc"}


def test_one_mask_of_two_images_and_two_images_of_one_name_are_refused(tmp_path):
    write(tmp_path / "d", "train/1.jpg", "val/1.jpg")
    write(tmp_path / "flat", "1.png")
    with pytest.raises(DataError, match=r"both have the mask 1\.png"):
        pairs(tmp_path / "d", tmp_path / "flat")
    write(tmp_path / "e", "images/1.jpg", "images/1.png", "masks/1.png")
    with pytest.raises(DataError, match="would have the same mask"):
        pairs(tmp_path / "e")


def test_images_outside_of_the_splits_are_training_images(tmp_path):
    write(tmp_path, "images/a.jpg", "masks/a.png", "test/images/b.jpg", "test/masks/b.png")
    _, index = pairs(tmp_path)
    assert index.splits.tolist() == [TRAIN, TEST]


def test_a_table_with_labels_and_a_column_mask_of_words_is_no_segmentation(tmp_path):
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("path,label,mask\na.png,cat,yes\nb.png,dog,no\n")
    assert not has_masks(open_source(str(tmp_path / "t.csv")))


def test_many_masks_with_endings_are_found_in_time(tmp_path):
    write(tmp_path, *(f"images/{n}.jpg" for n in range(200)))
    write(tmp_path, *(f"masks/{n}_mask.png" for n in range(200)))
    assert len(pairs(tmp_path)[0]) == 200


def test_classes_about_masks_and_images_of_one_name_stay_classes(tmp_path):
    """Faces with and without a mask, as JPEG and PNG."""
    names = ("with_mask/1.jpg", "with_mask/1.png", "without_mask/1.jpg", "mask/1.jpg")
    source = open_source(str(write(tmp_path, *names)))
    assert not has_masks(source)


def test_files_of_the_folders_of_masks_are_no_images(tmp_path):
    names = ("images/a.png", "gtFine/a_labelIds.png", "gtFine/a_color.png")
    source = open_source(str(write(tmp_path, *names)))
    assert has_masks(source)
    assert sorted(source.names[row] for row in mask_rows(source)) == [
        "gtFine/a_color.png",
        "gtFine/a_labelIds.png",
    ]
