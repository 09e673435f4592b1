"""The table of errors by light."""
import numpy as np
import pandas as pd
import pytest

from tools.light import face_light, light_table

pytestmark = pytest.mark.quick


def test_a_side_in_the_dark_is_uneven():
    image = np.full((60, 60, 3), 200, np.uint8)
    even = face_light(image, (10, 10, 50, 50))
    assert even == pytest.approx((0, 0, 200))
    image[:, :30] = 50
    unevenness, contrast, brightness = face_light(image, (10, 10, 50, 50))
    assert unevenness == pytest.approx(150 / 250)
    assert contrast == pytest.approx(75) and brightness == pytest.approx(125)


def test_the_table_has_the_errors_of_the_rows_it_names():
    count = 100
    light = pd.DataFrame({'unevenness': np.arange(count),
                          'contrast': np.arange(count)[::-1],
                          'brightness': np.arange(count)})
    rows = pd.DataFrame({'yaw': np.arange(count) / 10.0, 'yaw_true': 0.0})
    far = pd.DataFrame({'yaw': [500.0], 'yaw_true': [50.0]})  # is left out
    table = light_table(
        pd.concat([light, light[:1]], ignore_index=True),
        {'net': pd.concat([rows, far], ignore_index=True)}).set_index('')
    assert table.images.tolist() == [50, 10, 3, 3, 25, 75]
    assert table.net['least even 3%'] == pytest.approx(9.8)
    assert table.net['most contrast 3%'] == pytest.approx(0.1)
    assert table.net['darkest quarter'] == pytest.approx(1.2)
