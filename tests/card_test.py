"""tools/model_card.py: the tables of the shipped network's card."""
import numpy as np
import pytest

from headpose.training.engine import Evaluation
from tests.conftest import ROOT
from tools import model_card

pytestmark = pytest.mark.quick
TRUE = np.array([[0, 0, 0], [40, 0, 0], [-80, 0, 0.0]])
RESULT = Evaluation(0, np.arange(3), TRUE + [[3, 0, 0], [0, 6, 0], [9, 9, 9]],
                    TRUE, np.array([4.0, 5, 20]))


def test_a_table_replaces_the_one_below_its_name_alone():
    text = 'a\n<!-- one -->\n| old |\n| 1 |\n\nb\n<!-- two -->\n| kept |\n'
    assert model_card.filled(text, {'one': '| new |\n'}) == (
        'a\n<!-- one -->\n| new |\n\nb\n<!-- two -->\n| kept |\n')
    with pytest.raises(SystemExit, match='<!-- three -->'):
        model_card.filled(text, {'three': '| new |\n'})


def test_the_card_has_a_place_for_every_table():
    text = (ROOT / model_card.CARD).read_text(encoding='utf-8')
    names = 'framing', 'errors', 'ranges', 'light', 'coverage'
    tables = dict.fromkeys(names, '| x |\n')
    assert model_card.filled(text, tables).count('-->\n| x |\n\n') == 5


def test_errors_are_by_network_test_and_angle():
    row = model_card.errors_text(
        {'net': {('raw', True, 3): RESULT}}).splitlines()[2]
    assert row.startswith('| net | raw, three looks, `--flip` | 4.000 | 5.000 '
                          '| 3.000 | 4.000 (')
    rows = model_card.ranges_text(RESULT).splitlines()[2:]
    assert len(rows) == 9
    assert rows[1].startswith(
        '| \\|yaw\\| 30 to 60 | 1 | 0.00 | 6.00 | 0.00 | 2.00 |')
    assert rows[2].startswith('| \\|yaw\\| from 60 on | 1 | 9.00 |')
    assert rows[3].startswith('| \\|pitch\\| 0 to 30 | 3 | 4.00 |')


def test_coverage_is_a_column_for_each_share():
    rows = model_card.coverage_text(RESULT).splitlines()
    assert rows[0].startswith('| kept | 100% | 95% |')
    assert rows[2].startswith('| spread up to | 20.0 |')
    assert rows[3].startswith('| MAE | 4.00 |') and rows[3].endswith('1.50 |')
