"""tools/framing.py: boxes drawn as another data set's."""
import numpy as np
import pytest

from tools import framing

pytestmark = pytest.mark.quick

OUTER, BOX = np.array([100.0, 50, 200, 170]), np.array([95.0, 62, 180, 160])


def test_a_box_lies_where_it_was_placed():
    place = framing.placed(BOX, OUTER)
    np.testing.assert_allclose(place, [-0.05, 0.1, 0.8, 110 / 120])
    np.testing.assert_allclose(framing.box_at(place, OUTER), BOX)
    larger = framing.box_at(place, OUTER * 2)
    np.testing.assert_allclose(larger, BOX * 2)


def test_a_place_is_of_a_similar_yaw_and_on_the_same_side():
    yaws = np.repeat([5.0, -70.0], framing.NEIGHBOURS)
    places = np.repeat([[0, 0, 1, 1], [0.1, 0, 0.5, 1]], framing.NEIGHBOURS,
                       0)
    for yaw, expected in ((9, [0, 0, 1, 1]), (-60, [0.1, 0, 0.5, 1]),
                          (60, [0.5, 0, 0.9, 1])):
        place = framing.drawn_place(yaw, yaws, places,
                                    np.random.default_rng(0))
        np.testing.assert_allclose(place, expected)


def test_the_row_is_by_yaw():
    true = np.array([[0, 0, 0], [40, 0, 0], [-80, 0, 0.0]])
    row = framing.errors_row(true + [[3, 0, 0], [0, 6, 0], [9, 9, 9]], true)
    assert (row['0-30'], row['30-60'], row['60-100']) == (1, 2, 9)
    assert row['MAE'] == 4 and row['images'] == 3
