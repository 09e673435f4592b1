"""--report and compare.py, by what a user sees."""
import base64
import io
import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import test_shufflenet
from headpose.evaluation import compare, metrics
from headpose.geometry import pose
from headpose.training.engine import Evaluation
from shufflenet import ShuffleNet
from tests.conftest import CHROMIUM, CHROMIUM_OPTIONS, SIZE, TEST_LINE
from tools import tables

NASTY = '<b>a & "b"'  # a file's name may be HTML
# What a page tells the fixture `browser`, whatever went wrong in it.
PICTURES_SHOWN = '''<script>
addEventListener('load', () => console.log('END ' + JSON.stringify(
    [...document.images].map(image => image.naturalWidth))));
</script>'''


class Page(HTMLParser):
    """What a browser would find in a page: its text and what it links to."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.text = set(), [], ''
        self.feed(path.read_text(encoding='utf-8'))
        self.close()

    def handle_starttag(self, tag, attributes):
        """Notes a tag and where it points."""
        self.tags.add(tag)
        self.links += [value for name, value in attributes
                       if name in ('src', 'href', 'srcset', 'data')]

    def handle_data(self, data):
        """Collects the text, that of the style sheet, too."""
        self.text += data


def snapshot(path, **more):
    """Writes a checkpoint of an untrained network, always the same."""
    torch.manual_seed(0)
    state = ShuffleNet(0.5).state_dict()
    torch.save({'model': state, **more} if more else state, path)
    return path


def report_options(data_dir, folder, *more):
    """Returns a test's options that write a report into `folder`."""
    return ['--gpu', -1, '--workers', 0, '--data_dir', data_dir,
            '--image_size', SIZE, '--report', folder, *more]


@pytest.fixture
def named(sample, tmp_path):
    """A folder of one image, with a name that is HTML, and its list."""
    folder = tmp_path / 'one'
    folder.mkdir()
    name = (sample / 'AFLW2000' / 'filename_list.txt').read_text().split()[0]
    for ending in ('.jpg', '.mat'):
        shutil.copy(sample / 'AFLW2000' / f'{name}{ending}',
                    folder / f'{NASTY}{ending}')
    (folder / 'filename_list.txt').write_text(f'{NASTY}\n')
    return folder


def written(path, names, predicted, true, landmarks='visible'):
    """Writes what `compare` needs of a report; returns its path."""
    path.write_text(json.dumps({
        'protocol': {'landmarks': landmarks, 'image_size': 224},
        'rows': [{'name': name, 'predicted': list(p), 'true': list(t)}
                 for name, p, t in zip(names, predicted, true)]}))
    return path


def synthetic(count=200, seed=0):
    """Returns names and true angles of `count` images."""
    rng = np.random.default_rng(seed)
    return ([f'image{i}' for i in range(count)],
            rng.uniform(-60, 60, (count, 3)))


# ---------------------------------------------------------------- the report

def check_page(path, report):
    """Asserts that a page holds all it shows, and shows what it should."""
    page = Page(path)
    assert 'script' not in page.tags and 'link' not in page.tags
    assert 'url(' not in page.text and '@import' not in page.text
    assert len(page.links) == 1 + min(12, len(report['rows']))
    for link in page.links:
        kind, data = link.split(';base64,')
        assert kind in ('data:image/png', 'data:image/jpeg')
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            image.load()
    errors = {row['name']: np.abs(np.subtract(row['predicted'], row['true'])
                                  ).mean() for row in report['rows']}
    worst = sorted(errors, key=errors.get, reverse=True)[:12]
    places = [page.text.index(f'{name}error') for name in worst]
    assert places == sorted(places)
    assert page.text.count('predicted ') == len(worst)
    for value in report['protocol'].values():
        assert str(value) in page.text
    return page


def check_numbers(report, out):
    """Asserts that report.json is strict, and agrees with the test line."""
    count, *figures = TEST_LINE.search(out).groups()
    assert len(report['rows']) == report['protocol']['images'] == int(count)
    assert [f"{report['axes'][axis]['error']:.4f}" for axis
            in (*pose.AXES, 'MAE')] == figures
    predicted, true = (np.array([row[key] for row in report['rows']])
                       for key in ('predicted', 'true'))
    for column, axis in enumerate(pose.AXES):
        found = report['axes'][axis]
        difference = (predicted - true)[:, column]
        assert found['bias'] == pytest.approx(difference.mean())
        assert found['median'] == pytest.approx(np.median(abs(difference)))
        assert sum(row['images'] for row in report['ranges'][axis]
                   ) == int(count)
    assert report['coverage'][0]['MAE'] == pytest.approx(
        report['axes']['MAE']['error'])
    if int(count) > 1:
        assert all(row['low'] < row['error'] < row['high']
                   for row in report['axes'].values())


def strict(path):
    """Reads JSON that any reader accepts: without NaN."""
    def refuse(constant):
        raise AssertionError(f'{constant} is no JSON')
    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.filterwarnings('error')
def test_a_report_of_the_whole_sample(sample, run, tmp_path):
    folder = tmp_path / 'new' / 'report'
    status, out, err = run(test_shufflenet, *report_options(
        sample / 'AFLW2000', folder, '--landmarks', 'raw',
        '--snapshot', snapshot(tmp_path / 'x.pkl')))
    assert status == 0, err
    assert sorted(path.name for path in folder.iterdir()) == [
        'report.html', 'report.json']
    numbers = strict(folder / 'report.json')
    check_numbers(numbers, out)
    page = check_page(folder / 'report.html', numbers)
    assert 'a bare state dict: no provenance' in page.text
    assert numbers['protocol']['landmarks'] == 'raw'
    assert numbers['protocol']['image_size'] == SIZE
    assert len(numbers['protocol']['sha256']) == 16


@pytest.mark.filterwarnings('error')
def test_a_report_of_one_image_has_no_interval(named, run, tmp_path):
    status, out, err = run(test_shufflenet, *report_options(
        named, tmp_path, '--snapshot', snapshot(
            tmp_path / 'x.pkl', provenance={'commit': '<i>abc'},
            validation={'mae': float('nan')})))
    assert status == 0, err
    numbers = strict(tmp_path / 'report.json')
    check_numbers(numbers, out)
    page = check_page(tmp_path / 'report.html', numbers)
    assert numbers['rows'][0]['name'] == NASTY
    assert numbers['axes']['MAE']['low'] is None
    assert numbers['provenance'] == {'commit': '<i>abc'}
    assert '<i>abc' in page.text and not page.tags & {'b', 'i'}


def test_a_report_that_cannot_be_written_names_its_folder(named, run,
                                                          tmp_path):
    (tmp_path / 'taken').write_text('a file where a folder should be')
    status, out, err = run(test_shufflenet, *report_options(
        named, tmp_path / 'taken', '--snapshot',
        snapshot(tmp_path / 'x.pkl')))
    assert status == 1 and TEST_LINE.search(out)
    assert err.count('\n') == 1
    assert err.startswith(f'{tmp_path}/taken/') and 'cannot be written' in err


def test_answers_that_are_no_numbers_are_not_reported(named, run, tmp_path):
    state = ShuffleNet(0.5).state_dict()
    state['fc_yaw.bias'][:] = torch.nan
    torch.save(state, tmp_path / 'x.pkl')
    status, _, err = run(test_shufflenet, *report_options(
        named, tmp_path / 'report', '--snapshot', tmp_path / 'x.pkl'))
    assert status == 1 and err.startswith(f'{tmp_path}/x.pkl: ')
    assert not (tmp_path / 'report').exists()


def test_third_party_weights_are_reported_with_their_error(real, run,
                                                           tmp_path):
    folder, lists = real
    status, out, err = run(
        test_shufflenet, '--gpu', -1, '--workers', 0, '--data_dir',
        folder / 'AFLW2000', '--filename_list', lists['AFLW2000'],
        '--snapshot',
        folder.parent / 'weights' / 'hopenet_lite_shufflenetv2.pkl',
        '--report', tmp_path)
    assert status == 0, err
    numbers = strict(tmp_path / 'report.json')
    check_numbers(numbers, out)
    check_page(tmp_path / 'report.html', numbers)
    assert numbers['axes']['MAE']['error'] == pytest.approx(3.75, abs=0.05)
    # Wrong signs of an axis, or a wrong order, would at least double it.
    assert 3.75 < numbers['rotation']['geodesic_mean'] < 7.5


def test_a_browser_shows_the_report(sample, run, tmp_path, browser):
    status, _, err = run(test_shufflenet, *report_options(
        sample / 'AFLW2000', tmp_path, '--snapshot',
        snapshot(tmp_path / 'x.pkl')))
    assert status == 0, err
    shot = tmp_path / 'shot.png'
    subprocess.run(
        [CHROMIUM, *CHROMIUM_OPTIONS, f'--user-data-dir={tmp_path}/profile',
         '--window-size=1100,2800', f'--screenshot={shot}',
         f'file://{tmp_path}/report.html'],
        check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert('RGB'))
    assert pixels.shape[:2] == (2800, 1100)
    # Text, plots and faces: many colours, and no third that is all white.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    assert all((part < 200).any() for part in np.array_split(pixels, 3))
    # The same page says that all its pictures are there, and nothing else.
    text = (tmp_path / 'report.html').read_text('utf-8')
    (tmp_path / 'same.html').write_text(text + PICTURES_SHOWN, 'utf-8')
    widths, said = browser(tmp_path / 'same.html')
    assert len(widths) == 1 + 9 and all(widths) and not said
    # It would say what is wrong.
    (tmp_path / 'bad.html').write_text(
        f'<img src="no.jpg"><script>throw "no"</script>{PICTURES_SHOWN}')
    assert browser(tmp_path / 'bad.html') == ([0], ['Uncaught no'])


# --------------------------------------------------------------- its numbers

@pytest.mark.quick
def test_rotation_errors_are_scipys():
    predicted, true = synthetic(seed=1)[1], synthetic(seed=2)[1]
    predicted[0] = true[0]
    predicted[1] = true[1] + [0, 0, 1e-5]
    geodesic, vectors = pose.rotation_errors(predicted, true)
    turn = (Rotation.from_matrix(pose.rotation_matrix(predicted)).inv()
            * Rotation.from_matrix(pose.rotation_matrix(true)))
    np.testing.assert_allclose(geodesic, np.degrees(turn.magnitude()),
                               rtol=1e-6, atol=1e-9)
    cosines = np.diagonal(turn.as_matrix(), axis1=1, axis2=2)
    np.testing.assert_allclose(
        vectors, np.degrees(np.arccos(cosines.clip(-1, 1))), atol=1e-5)


@pytest.mark.quick
def test_coverage_keeps_the_surest_images():
    rng = np.random.default_rng(8)
    true = rng.uniform(-60, 60, (200, 3))
    spread = rng.uniform(1, 9, 200)
    result = Evaluation(0.0, np.arange(200), true + spread[:, None], true,
                        spread)
    table = metrics.coverage_table(result)
    assert table['images'].tolist() == [200, 190, 180, 160, 140, 120, 100]
    assert table.MAE[0] == pytest.approx(spread.mean())
    assert table.MAE.iloc[-1] == pytest.approx(np.sort(spread)[:100].mean())
    assert table['spread up to'].is_monotonic_decreasing


@pytest.mark.quick
def test_a_roll_turns_all_but_the_vector_out_of_the_face():
    geodesic, vectors = pose.rotation_errors(
        np.array([[20.0, -10, 35], [0, 0, 180]]),
        np.array([[20.0, -10, 5], [0, 0, 0]]))
    np.testing.assert_allclose(geodesic, [30, 180])
    np.testing.assert_allclose(vectors, [[30, 30, 0], [180, 180, 0]],
                               atol=1e-9)


@pytest.mark.quick
def test_the_interval_holds_the_mean_and_shrinks_like_one_over_root_n():
    rng = np.random.default_rng(3)
    widths = []
    for count in (100, 400, 1600):
        values = rng.exponential(4, (count, 2))
        low, high = metrics.bootstrap(values)
        assert (low < values.mean(0)).all() and (values.mean(0) < high).all()
        # The normal approximation, of a mean of so many.
        np.testing.assert_allclose(
            high - low, 2 * 1.96 * values.std(0) / count ** 0.5, rtol=0.1)
        widths.append((high - low).mean())
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.25)


# --------------------------------------------------------------- two reports

@pytest.mark.quick
def test_a_report_does_not_differ_from_itself(run, tmp_path):
    names, true = synthetic(20)
    path = written(tmp_path / 'report.json', names, true + 3, true)
    status, out, err = run(compare, 'compare', path, tmp_path)
    assert status == 0, err
    assert '20 common images (left out: 0 of A, 0 of B)\n' in out
    assert 'the difference is within the error bars' in out
    *_, last = [line for line in out.splitlines() if line.startswith('MAE')]
    assert last.split()[1:] == ['3.0000', '3.0000', '0.0000', '0.0000',
                                '0.0000']


@pytest.mark.quick
def test_the_clearly_better_report_is_called_so(run, tmp_path):
    names, true = synthetic()
    noise = np.random.default_rng(4).normal(0, 1, true.shape)
    good = written(tmp_path / 'good.json', names[5:], (true + noise)[5:],
                   true[5:])
    bad = written(tmp_path / 'bad.json', names[:-2], (true + 2 * noise)[:-2],
                  true[:-2])
    _, out, _ = run(compare, 'compare', good, bad)
    assert 'A is better' in out and 'B is better' not in out
    assert '193 common images (left out: 2 of A, 5 of B)' in out
    _, out, _ = run(compare, 'compare', bad, good)
    assert 'B is better' in out and 'A is better' not in out


@pytest.mark.quick
def test_other_crops_are_not_compared_in_silence(run, tmp_path):
    names, true = synthetic(20)
    a, same, b = (written(tmp_path / f'{number}.json', names, true, true,
                          landmarks) for number, landmarks in
                  enumerate(('visible', 'visible', 'raw')))
    _, out, _ = run(compare, 'compare', a, same)
    assert 'landmarks' not in out and 'image_size' not in out
    _, out, _ = run(compare, 'compare', a, b)
    assert '\nlandmarks: A visible, B raw\n' in out
    assert 'image_size' not in out


@pytest.mark.quick
def test_noise_and_a_single_image_decide_nothing(run, tmp_path):
    names, true = synthetic()
    for count in (1, 200):
        paths = [written(
            tmp_path / f'{seed}.json', names[:count],
            true + np.random.default_rng(seed).normal(0, 3, true.shape), true)
            for seed in (5, 6)]
        _, out, _ = run(compare, 'compare', *paths)
        assert 'the difference is within the error bars' in out


@pytest.mark.quick
def test_reports_that_cannot_be_compared_are_one_line(run, tmp_path):
    names, true = synthetic(5)
    good = written(tmp_path / 'good.json', names, true, true)
    (tmp_path / 'text.json').write_text('no report')
    (tmp_path / 'list.json').write_text('[1, 2]')
    (tmp_path / 'rows.json').write_text('{"rows": [{"name": "x"}]}')
    (tmp_path / 'bytes.json').write_bytes(b'\xff\xfe\x00')
    written(tmp_path / 'empty.json', [], true, true)
    written(tmp_path / 'flat.json', names, true[:, :2], true[:, :2])
    written(tmp_path / 'others.json', ['x', 'y'], true, true)
    written(tmp_path / 'labels.json', names, true, true + 0.01)
    for name, message in {
            'text': 'no report', 'list': 'no report', 'rows': 'no report',
            'bytes': 'no report', 'empty': 'no report', 'flat': 'no report',
            'missing': 'no report', 'others': 'no image in common',
            'labels': 'true angles of image'}.items():
        path = tmp_path / f'{name}.json'
        status, out, err = run(compare, 'compare', good, path)
        assert status == 1 and err.count('\n') == 1 and not out, name
        assert err.startswith(f'{path}: ') and message in err


def test_the_documents_tables_are_filled_in(sample, run, tmp_path):
    path = snapshot(tmp_path / 'x.pkl')
    status, out, err = run(test_shufflenet, *report_options(
        sample / 'AFLW2000', tmp_path / 'r', '--snapshot', path))
    assert status == 0, err
    mae = TEST_LINE.search(out).groups()[-1]
    status, out, err = run(tables, tmp_path / 'r/report.json')
    assert status == 0, err
    count = sum(p.numel() for p in ShuffleNet(0.5).parameters())
    for figure in ('5.422', '7.833', '95.9 MB', '26.5M', f'{count:,}',
                   f'{float(mae):.3f}', 'x.pkl'):
        assert figure in out
    (tmp_path / 'bad.json').write_text('[]')
    status, _, err = run(tables, tmp_path / 'bad.json')
    assert status == 1 and 'bad.json: is no report.json' in err


@pytest.mark.quick
def test_intervals_are_those_of_groups():
    """Sequences of like errors are as wide as their number makes them."""
    rng = np.random.default_rng(1)
    each = rng.exponential(3, (24, 4))
    values = np.repeat(each, 50, 0)
    groups = [str(number) for number in range(24) for _ in range(50)]
    low, high = metrics.bootstrap(values, groups)
    few = metrics.bootstrap(each)
    np.testing.assert_allclose((low, high), few)
    alone = metrics.bootstrap(values)
    assert ((high - low) > 5 * (alone[1] - alone[0])).all()
    single = metrics.bootstrap(values, [f'{number}' for number in range(1200)])
    np.testing.assert_allclose(single, alone)
    assert np.isnan(metrics.bootstrap(values, ['x'] * 1200)).all()
