"""The square that is cut out of a picture."""

import numpy as np

from gphm_jax.capture.framing import Square


def test_a_square_that_leaves_the_picture_says_what_of_it_was_recorded():
    square, black = Square(left=-10, top=20, side=100), np.zeros((90, 80, 3), np.uint8)
    box = square.recorded(black.shape[:2], 50)
    np.testing.assert_array_equal(box, [5, 0, 45, 35])
    seen = np.zeros((50, 50), bool)
    seen[0:35, 5:45] = True
    np.testing.assert_array_equal(square.crop(black, 50) == 0, np.repeat(seen[..., None], 3, axis=2))
    larger = Square(left=20, top=0, side=90)  # two pixels of the square for each of the picture
    box = larger.recorded(black.shape[:2], 180)
    np.testing.assert_array_equal(box, [0, 0, 119, 180])
    shown = larger.crop(black, 180)
    assert (shown[:, :119] == 0).all() and (shown[:, 119] > 0).all()
    assert Square(left=3, top=2, side=20).recorded((90, 80), 50).tolist() == [0, 0, 50, 50]
