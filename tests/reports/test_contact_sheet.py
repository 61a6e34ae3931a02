"""Contact sheets."""

import io

import numpy as np
from PIL import Image

from unfreeze.reports.run_reader import GAP, contact_sheet, image_row_png, read_run


def test_a_strip_holds_the_images_unchanged():
    given = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    made = np.asarray(Image.open(io.BytesIO(image_row_png(given))))
    assert made.shape == (16, 3 * 16 + 2 * GAP, 4)
    for place in range(3):
        left = place * (16 + GAP)
        assert (made[:, left : left + 16, :3] == given[place]).all()
        assert (made[:, left : left + 16, 3] == 255).all()
    assert (made[:, 16 : 16 + GAP, 3] == 0).all()


def test_a_sheet_has_a_row_for_each_prototype(pretraining):
    held = read_run(pretraining).prototypes
    whole, part = (Image.open(io.BytesIO(contact_sheet(held, limit=n))) for n in (99, 3))
    assert whole.height - 8 == 4 * (part.height - 8)  # twelve rows and three
