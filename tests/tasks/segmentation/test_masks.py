"""Masks of every kind become class ids, and what is no mask is refused with file and value."""

import io

import numpy as np
import pytest
from PIL import Image

from unfreeze.errors import DataError
from unfreeze.tasks.segmentation.masks import (
    COLOUR,
    IGNORED,
    MaskClasses,
    classes_of_values,
    read_class_table,
    read_mask,
)
from unfreeze.tasks.segmentation.overlay import mask_png

IDS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
TABLE = MaskClasses(("sky", "road", "car"), (0, 1, 2), (255,))


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def with_palette():
    image = Image.fromarray(IDS, "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    return image


def test_indexed_grey_and_deep_masks_are_read_by_value():
    for image in (
        with_palette(),
        Image.fromarray(IDS),
        Image.fromarray(IDS.astype(np.uint16)),
        Image.fromarray(np.stack([IDS] * 3, -1)),
        Image.merge("LA", (Image.fromarray(IDS), Image.new("L", (3, 2), 255))),
    ):
        assert read_mask(encoded(image), "m.png").tolist() == IDS.tolist(), image.mode
    black = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_mask(encoded(black), "m.png").tolist() == [[0, 1]]


def test_a_palette_is_read_as_colours_only_where_the_table_has_colours():
    table = read_class_table(b"r,g,b,name\n0,0,0,sky\n128,0,0,road\n0,128,0,car\n", "t.csv", None)
    values = read_mask(encoded(with_palette()), "m.png", colours=True)
    assert table.ids(values, "m.png").tolist() == IDS.tolist()
    rgb = read_mask(encoded(with_palette().convert("RGB")), "m.png", colours=True)
    assert table.ids(rgb, "m.png").tolist() == IDS.tolist()


def test_jpeg_and_float_masks_and_damaged_files_are_refused():
    for data, words in (
        (encoded(Image.fromarray(IDS), "JPEG"), "JPEG"),
        (encoded(Image.fromarray(IDS.astype(np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(IDS))[:40], "cannot be read"),
    ):
        with pytest.raises(DataError, match=f"masks/a.png.*{words}"):
            read_mask(data, "masks/a.png")


def test_an_unknown_value_is_named_with_file_and_pixels():
    with pytest.raises(DataError, match=r"m\.png: the value 7 \(2 pixels\) is not in t\.csv"):
        MaskClasses(("a", "b"), (0, 1), where="t.csv").ids(np.array([[0, 7], [7, 1]]), "m.png")
    colours = MaskClasses(("a", "b"), (0, 0xFF0000), colours=True, where="t.csv")
    with pytest.raises(DataError, match=r"the colour 0,0,255 \(1 pixels\)"):
        colours.ids(np.array([[0, 0xFF]]), "m.png")


def test_ignored_values_become_one_id():
    assert TABLE.ids(np.array([[0, 255, 2]]), "m.png").tolist() == [[0, IGNORED, 2]]
    table = read_class_table(b"id,name\n0,sky\n1,road\n11,void\n", "t.csv", None)
    assert table.names == ("sky", "road")
    assert table.ids(np.array([[1, 11, 255]]), "m").tolist() == [[1, IGNORED, IGNORED]]
    given = read_class_table(b"id,name\n0,void\n1,a\n2,b\n3,c\n", "t.csv", 2)
    assert given.names == ("a", "c") and given.ignored == (2, 0)


def test_tables_with_other_words_orders_and_separators():
    table = read_class_table(b"\xef\xbb\xbfname;r;g;b\nroad;0;0;1\nsky;0;1;0\n", "t.csv", None)
    assert table.names == ("road", "sky") and table.values == (1, 256) and table.colours
    by_value = read_class_table(b"id,name\n5,b\n2,a\n", "t.csv", None)
    assert by_value.names == ("a", "b") and by_value.values == (2, 5)
    for text, words in (
        (b"id,title\n0,a\n", "columns id, title"),
        (b"id,name\n0,a\n0,b\n", "twice"),
        (b"id,name\nx,a\n1,b\n", "invalid literal"),
        (b"id,name\n0,a\n", "1 classes"),
    ):
        with pytest.raises(DataError, match=words):
            read_class_table(text, "t.csv", None)


def test_classes_without_a_table():
    binary = classes_of_values([0, 255], None)
    assert binary.names == ("background", "foreground") and binary.values == (0, 255)
    assert classes_of_values([0, 1], None).names == ("background", "foreground")
    several = classes_of_values([3, 0, 255, 1], None)
    assert several.names == ("0", "1", "3") and several.ignored == (255,)
    assert classes_of_values([0, 1, 2], 2).names == ("background", "foreground")
    with pytest.raises(DataError, match="3 colours"):
        classes_of_values([COLOUR, COLOUR | 0xFF0000, COLOUR | 0x00FF00], None)
    with pytest.raises(DataError, match="look like images"):
        classes_of_values(list(range(200)), None)


def test_a_written_mask_reads_back():
    for table in (TABLE, MaskClasses(("a", "b"), (0, 255)), MaskClasses(("a", "b"), (7, 1000))):
        ids = np.minimum(IDS, len(table.names) - 1)
        image = Image.open(io.BytesIO(mask_png(ids, table)))
        assert image.mode == "P" and image.size == (3, 2)
        values = read_mask(mask_png(ids, table), "m.png")
        same = ids if max(table.values) > 255 else np.array(table.values)[ids]
        assert values.tolist() == same.tolist()
    assert MaskClasses.from_dict(TABLE.as_dict()) == TABLE


def test_colours_without_red_are_colours():
    rgb = np.zeros((2, 3, 3), np.uint8)
    rgb[0, :, 2], rgb[1, :, 1] = 255, 255  # blue and green
    values = read_mask(encoded(Image.fromarray(rgb)), "m.png")
    with pytest.raises(DataError, match=r"2 colours \(0,0,255, 0,255,0\)"):
        classes_of_values(np.unique(values).tolist(), None)
    grey = MaskClasses(("a", "b"), (0, 255), where="t.csv")
    with pytest.raises(DataError, match="value 0,0,255"):
        grey.ids(values[:1], "m.png")
    with pytest.raises(DataError, match="names no class"):
        read_class_table(b"r,g,b,name\n0,0,255,a\n0,0,0,b\n", "t.csv", 255)


def test_ids_that_no_mask_can_have():
    table = read_class_table(b"id,name\n-1,plate\n0,road\n1,car\n", "t.csv", None)
    assert table.names == ("road", "car")
    for text in (b"id,name\n0,a\n70000,b\n", b"r,g,b,name\n300,0,0,a\n0,0,0,b\n"):
        with pytest.raises(DataError, match="outside of 0 to 255 or an id above 65535"):
            read_class_table(text, "t.csv", None)
    with pytest.raises(DataError, match="without a name"):
        read_class_table(b"id,name\n0,a\n1,\n2,b\n", "t.csv", None)


def test_a_table_with_ids_and_colours_is_read_as_the_masks_are():
    text = b"id,name,r,g,b\n0,road,1,1,1\n1,car,2,2,2\n"
    assert read_class_table(text, "t.csv", None, coloured=False).values == (0, 1)
    assert read_class_table(text, "t.csv", None, coloured=True).colours


def test_a_mask_of_too_many_pixels_is_a_sentence(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(DataError, match="cannot be read"):
        read_mask(encoded(Image.fromarray(np.zeros((9, 9), np.uint8))), "m.png")
