"""A table of one's own labels, wherever a data set can be."""
import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import datasets
import export
import filename_generator
import test_shufflenet
import train_shufflenet
from headpose.errors import DataError
from headpose.evaluation import compare
from headpose.readers import lists, mat, table as labels
from headpose.training import options
from tests.conftest import ROOT, TEST_LINE, listed
from tests.helpers import last, run_options

HEADER = ['image', 'x_min', 'y_min', 'x_max', 'y_max', 'yaw', 'pitch', 'roll']
ROW = ['image00002.jpg', 10, 20, 110, 130, 1.5, -2.5, 3.5]
OPAL23 = '#;image;tl_x;tl_y;br_x;br_y;yaw;pitch;roll;\n'


def table_text(rows, header=HEADER, separator=','):
    """Returns a table's text."""
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator='\n').writerows(
        [header, *rows])
    return text.getvalue()


def rows_of(folder):
    """Returns what a folder's .mat files say, as rows of a table."""
    found = lists.read_annotations(folder, folder / 'filename_list.txt')
    # Not read_annotations' float32: what a table says in full.
    angles = [mat.read_mat(folder / f'{name}.mat')[0]
              for name in found.names]
    return [[image, *map(repr, box.tolist()), *map(repr, each.tolist())]
            for image, box, each in zip(found.images, found.boxes, angles)]


@pytest.fixture
def flat(sample, tmp_path):
    """A folder of nine images, without list and .mat files."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for path in (sample / 'AFLW2000').glob('*.jpg'):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def rows(sample):
    """Their labels, rows of HEADER's columns."""
    return rows_of(sample / 'AFLW2000')


@pytest.fixture
def table(tmp_path):
    """Writes a table, of text or bytes; returns its path."""
    def write(content, name='mine.csv'):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes)
                         else content.encode('utf-8', 'surrogateescape'))
        return path
    return write


def read(folder, path, filename_list=None):
    return datasets.read_annotations(folder, filename_list, labels=path)


def same(one, other):
    """Asserts that two `Annotations` say the same of the same images."""
    assert one.names == other.names and one.images == other.images
    np.testing.assert_array_equal(one.angles, other.angles)
    np.testing.assert_array_equal(one.boxes, other.boxes)


# --------------------------------------------------------------- good tables

@pytest.mark.quick
def test_a_table_says_what_the_mat_files_do(flat, sample, rows, table):
    source = sample / 'AFLW2000'
    path = table(table_text(rows))
    found = read(flat, path)
    same(found, lists.read_annotations(source,
                                       source / 'filename_list.txt'))
    assert found.groups is None and found.frames is None
    assert found.table == hashlib.sha256(
        path.read_bytes()).hexdigest()[:16]


@pytest.mark.quick
@pytest.mark.parametrize('change', [
    lambda text: '\ufeff' + text,
    lambda text: text.replace('\n', '\r\n'),
    lambda text: text.replace('\n', '\r'),
    lambda text: '\n' + text.replace('\n', '\n\n') + '\n\n',
    lambda text: text.replace(',', ';'),
    lambda text: text.replace(',', ' , ').replace('image', ' IMAGE', 1),
    lambda text: text.replace('image', 'path', 1),
    lambda text: text.replace('image', 'file', 1),
    lambda text: text.replace('image0', './a//../image0'),
    lambda text: text.replace('x_min,y_min,x_max,y_max',
                              'tl_x,tl_y,br_x,br_y'),
    lambda text: text.replace('\n', ',"a ""note"", with commas"\n').replace(
        '"a ""note"", with commas"', 'note', 1)])
def test_tables_come_in_many_shapes(flat, rows, table, change):
    expected = read(flat, table(table_text(rows)))
    same(read(flat, table(change(table_text(rows)))),
         expected)


@pytest.mark.quick
def test_the_columns_order_does_not_matter(flat, rows, table):
    expected = read(flat, table(table_text(rows)))
    backwards = table_text([row[::-1] for row in rows], HEADER[::-1])
    same(read(flat, table(backwards)), expected)


@pytest.mark.quick
def test_opal23s_list_is_read_as_it_is(table):
    # Its file's first lines, and one from its middle.
    path = table(OPAL23 + '\n'.join((
        'kinect_head_pose_db/01/frame_00003_rgb.png;270;177;414;355;'
        '-3.290994605902283;7.607222981354766;-1.5666319048416875',
        'kinect_head_pose_db/12/frame_00003_rgb.png;260;128;413;326;'
        '-9.327468425194075;-0.4049239861618869;-6.394386324258948')))
    found = labels.read_table(path, path.parent)
    assert not found.bad
    assert [row.name for row in found.rows] == [
        'kinect_head_pose_db/01/frame_00003_rgb',
        'kinect_head_pose_db/12/frame_00003_rgb']
    np.testing.assert_array_equal(found.rows[0].box, [270, 177, 414, 355])
    # Its yaw has the other sign: it has AFLW2000's image00004 at -68.155.
    np.testing.assert_allclose(
        [row.angles for row in found.rows],
        [[3.290995, 7.607223, -1.566632], [9.327468, -0.404924, -6.394386]],
        atol=1e-6)


@pytest.mark.quick
def test_no_other_tables_signs_are_changed(table):
    path = table(OPAL23.replace('#;', '').replace(';', ',')
                 + 'a.png,10,20,110,130,-9,1,2\n')
    row, = labels.read_table(path, path.parent).rows
    np.testing.assert_array_equal(row.angles, [-9, 1, 2])


# ---------------------------------------------------------------- bad tables

@pytest.mark.quick
@pytest.mark.parametrize('content, message', [
    ('', 'is empty'), ('\n \n', 'is empty'), (',,\n', 'is empty'),
    (','.join(HEADER), 'has no row below'),
    (b'\xff\xfe' + 'image,yaw'.encode('utf-16-le'), 'not a text file'),
    (table_text([ROW]).replace(',', '\t'), 'line 1: there is no comma and '),
    (table_text([ROW]).replace(',', '|'), 'line 1: there is no comma and '),
    (table_text([ROW], [*HEADER[:6], 'x', 'y']),
     'line 1: there is no column pitch, roll; wanted are image .or path'),
    (table_text([ROW], ['name', *HEADER[1:]]),
     'line 1: there is no column image; wanted are image .or path, file'),
    (table_text([ROW], [HEADER[0], 'left', *HEADER[2:]]),
     'no column x_min; .* .or tl_x, tl_y, br_x, br_y'),
    # Opal23's earlier list, whose pose is of another convention.
    ('#;image;tl_x;tl_y;br_x;br_y;pose\na.png;1;2;30;40;1;2;3\n',
     'there is no column yaw, pitch, roll'),
    ('\n' + table_text([[*ROW, 1]], [*HEADER, 'YAW']),
     'line 2: there are two columns yaw'),
    (table_text([ROW]) + '"image00003.jpg,1,2\n', 'line 3: .*end of data')])
def test_what_is_no_table_is_refused(flat, table, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read(flat, table(content))
    assert str(caught.value).startswith(str(flat.parent / 'mine.csv'))
    assert '\n' not in str(caught.value)


BAD_ROWS = [
    ((5, 'left'), "yaw: 'left' is not a number"),
    ((5, ''), "yaw: '' is not a number"),
    ((6, '1,5'), "pitch: '1,5' is not a number, decimals take a point"),
    ((7, 'nan'), 'roll: nan is not finite'),
    ((7, '-inf'), 'roll: -inf is not finite'),
    ((5, '\x1b[2J' + 'x' * 999), r"yaw: '\\x1b\[2Jx{30,40}' is not a num"),
    ((1, 'NaN'), 'x_min: nan is not finite'),
    ((3, 5), 'the face box of -5.0 x 110.0 pixels is too small'),
    ((4, 21), 'the face box of 100.0 x 1.0 pixels is too small'),
    ((3, 9000), 'too large'),
    ((0, '/etc/x.jpg'), '/etc/x.jpg is no name relative to the data'),
    ((0, 'a/../../x.jpg'), r'\.\./x.jpg is no name relative to the data'),
    ((0, ''), 'the image is not named'),
    ((0, 'two\nlines.jpg'), r'two\\nlines.jpg: no list can hold this name'),
    ((0, 'image00003.jpg'), 'image00003.jpg is listed already, in line 2'),
    ((0, './image00003.png'), 'image00003.png is listed already, in l')]


@pytest.mark.quick
@pytest.mark.parametrize('change, message', BAD_ROWS)
def test_a_bad_row_is_named_by_its_line(flat, table, generate, change,
                                        message):
    good, bad = list(ROW), list(ROW)
    good[0] = 'image00003.jpg'
    bad[change[0]] = change[1]
    path = table(table_text([good, bad]))
    with pytest.raises(DataError,
                       match=f'mine.csv: line 3: .*{message}') as caught:
        read(flat, path)
    assert str(caught.value).isprintable()
    status, _, err = generate(path, flat)
    assert status == 1 and 'mine.csv: line 3: ' in err
    assert '1 unusable files' in err and err.count('\n') == 2


@pytest.mark.quick
@pytest.mark.parametrize('row, message', [
    (ROW[:-1], 'there are 7 cells, where the first line names 8 columns'),
    ([*ROW, 5], 'there are 9 cells')])
def test_rows_of_another_length_are_bad(flat, table, row, message):
    with pytest.raises(DataError, match=f'line 2: {message}'):
        read(flat, table(table_text([row])))


@pytest.mark.quick
def test_empty_cells_behind_a_row_are_none(flat, table):
    path = table(table_text([[*ROW, '', '']], [*HEADER, '']))
    assert len(read(flat, path).names) == 1


@pytest.mark.quick
def test_a_group_without_a_name_is_bad(flat, table):
    path = table(table_text([[*ROW, ' ']], [*HEADER, 'group']))
    with pytest.raises(DataError, match='line 2: the group is not named'):
        read(flat, path)


@pytest.mark.quick
def test_missing_files_and_large_angles_are_named(flat, rows, table):
    for row, message in (
            (['gone.jpg', *ROW[1:]], 'gone.jpg: no such file, but it is in '
             '.*mine.csv: line 2'),
            ([*ROW[:5], 99.5, 0, 0], 'line 2: yaw of 99.50 degrees is beyo')):
        with pytest.raises(DataError, match=message):
            read(flat, table(table_text([row])))
    with pytest.raises(DataError, match='nowhere.csv: no such file'):
        read(flat, flat / 'nowhere.csv')
    with pytest.raises(DataError, match='nowhere: no such data folder'):
        datasets.read_annotations(flat / 'nowhere',
                                  labels=table(table_text(rows)))


# ------------------------------------------------------------- the generator

@pytest.mark.quick
def test_the_generator_lists_a_tables_images(flat, rows, table, generate):
    status, out, err = generate(table(table_text(rows[::-1])), flat)
    assert status == 0, err
    assert listed(flat) == [f'image{n:05}' for n in range(2, 11)]
    assert '9 kept, 0 dropped' in out and '1,969' not in out


def damaged(flat, rows):
    """Spoils six of nine rows, in lines 2 to 7, each in another way."""
    (flat / 'image00002.jpg').unlink()
    path = flat / 'image00003.jpg'
    path.write_bytes(path.read_bytes()[:2000])
    rows[2][5] = 'left'
    rows[3][1], rows[3][3] = 500, 600  # beside the picture
    rows[4] = rows[8]
    rows[5][7] = 'nan'
    return rows


@pytest.mark.quick
def test_everything_bad_is_named_by_its_line(flat, rows, table, generate):
    (flat / 'filename_list.txt').write_text('old\n')
    path = table(table_text(damaged(flat, rows)))
    status, _, err = generate(path, flat)
    assert status == 1 and '6 unusable' in err and listed(flat) == ['old']
    for line, message in ((2, 'no such file'),
                          (3, 'cannot be read as an image'),
                          (4, "yaw: 'left'"), (5, 'outside the picture'),
                          (7, 'not finite'), (10, 'listed already, in line')):
        (found,) = [text for text in err.splitlines()
                    if f'mine.csv: line {line}: ' in text]
        assert message in found
    status, out, _ = generate(path, flat, '--skip_bad')
    assert status == 0 and '3 kept, 0 dropped' in out and '6 unus' in out
    assert listed(flat) == ['image00008', 'image00009', 'image00010']
    # What is not in the list does no harm any more.
    found = read(flat, path, flat / 'filename_list.txt')
    assert found.names == listed(flat)
    (flat / 'filename_list.txt').write_text('image00008\nimage00004\n')
    with pytest.raises(DataError, match='line 2: image00004 is not in .*mine'
                       '.csv, or its line there is unusable'):
        read(flat, path, flat / 'filename_list.txt')


@pytest.mark.quick
def test_what_is_beyond_99_degrees_is_dropped(flat, rows, table, generate):
    rows[0][6], rows[1][5] = '-99.5', '99'
    status, out, _ = generate(table(table_text(rows)), flat)
    assert status == 0 and '8 kept, 1 dropped' in out
    assert 'dropped image00002: pitch of -99.50' in out
    assert listed(flat)[0] == 'image00003'


@pytest.mark.quick
def test_a_table_that_leaves_nothing_makes_no_list(flat, rows, table,
                                                   generate):
    rows[0][6] = 100
    status, _, err = generate(table(table_text(rows[:1])), flat)
    assert status == 1 and 'mine.csv leaves no image to list' in err
    status, _, err = generate(table('image,yaw\n'), flat)
    assert status == 1 and 'no column x_min' in err and err.count('\n') == 1
    assert not (flat / 'filename_list.txt').exists()


@pytest.mark.quick
def test_the_list_does_not_replace_the_table(flat, rows, table, generate):
    path = table(table_text(rows))
    before = path.read_bytes()
    status, _, err = generate(path, flat, '--output', path)
    assert status == 1 and 'would replace an image or its labels' in err
    assert path.read_bytes() == before


@pytest.mark.quick
def test_names_that_are_no_utf8_are_used(flat, rows, table, generate):
    target = os.path.join(os.fsencode(flat), b'J\xfcrgen.jpg')
    shutil.copy(flat / 'image00002.jpg', target)
    rows[0][0] = os.fsdecode(b'J\xfcrgen.jpg')
    text = table_text(rows[:2])
    path = table(text)
    assert b'J\xfcrgen' in path.read_bytes()
    assert generate(path, flat)[0] == 0
    found = read(flat, path, flat / 'filename_list.txt')
    assert sorted(found.names) == sorted([os.fsdecode(b'J\xfcrgen'),
                                          'image00003'])


# ------------------------------------------------------- training and testing

def test_the_test_reads_a_table(flat, sample, rows, table, run, snapshot,
                                tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = table(table_text(rows))
    given = ['--gpu', -1, '--workers', 0, '--snapshot', snapshot]
    status, out, err = run(test_shufflenet, *given, '--labels', path,
                           '--data_dir', flat, '--report', 'report',
                           '--save_viz')
    assert status == 0, err
    expected = run(test_shufflenet, *given, '--data_dir',
                   sample / 'AFLW2000')[1]
    assert TEST_LINE.search(out).groups() == TEST_LINE.search(
        expected).groups()
    assert len(list((tmp_path / 'output' / 'images').glob('*.jpg'))) == 9
    protocol = compare.load_report(tmp_path / 'report')['protocol']
    assert protocol['labels'] == protocol['filename_list'] == str(path)
    assert protocol['labels_sha256'] == hashlib.sha256(
        path.read_bytes()).hexdigest()[:16]
    assert protocol['crop'] == 'ours' and 'BIWI' not in protocol
    (tmp_path / 'some.txt').write_text('image00004\nimage00003\n')
    status, out, _ = run(test_shufflenet, *given, '--labels', path,
                         '--data_dir', flat, '--filename_list', 'some.txt')
    assert status == 0 and TEST_LINE.search(out)[1] == '2'


def test_a_bad_table_ends_a_script_in_one_line(flat, table, run, snapshot):
    path = table(table_text([[*ROW[:5], 'x', 0, 0]]))
    for script, more in ((test_shufflenet, ['--snapshot', snapshot]),
                         (train_shufflenet, ['--pretrained', 'none'])):
        status, _, err = run(script, '--gpu', -1, '--workers', 0, '--labels',
                             path, '--data_dir', flat, *more)
        assert status == 1 and err == f"{path}: line 2: yaw: 'x' is not a "\
            'number\n'


def grouped(sample, table, group_of):
    """Writes a table of the 300W_LP sample's 24 images, with groups."""
    folder = sample / '300W_LP'
    rows = [[*row, group_of(number)]
            for number, row in enumerate(rows_of(folder))]
    return folder, table(table_text(rows, [*HEADER, 'Group']))


@pytest.mark.quick
def test_a_split_keeps_groups_whole(sample, table, capsys):
    # Not by the names' photographs, which are three in a row.
    found = read(
        *grouped(sample, table, lambda number: f'p{number % 12}'))
    for seed in range(5):
        sides = [{loader.dataset.annotations.groups[index] for index
                  in loader.batch_sampler.indices} for loader in
                 datasets.training_loaders(found, split_seed=seed)]
        assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 12
        assert '20 images of 10 groups to train on, 4 images of 2 groups to '\
            'validate on' in capsys.readouterr().out
    datasets.training_loaders(found, split='image')
    assert '21 images to train on' in capsys.readouterr().out


@pytest.mark.quick
def test_groups_that_cannot_be_split_are_named(sample, table, capsys):
    one = grouped(sample, table, lambda _: 'anna')
    with pytest.raises(DataError, match='groups, and all images are of anna'):
        datasets.training_loaders(read(*one))
    two = grouped(sample, table, lambda number: f'g{number % 2}')
    datasets.training_loaders(read(*two))
    assert re.search('not 9:1: the largest of the groups is g[01], with 12',
                     capsys.readouterr().out)


@pytest.mark.quick
def test_without_groups_names_decide(sample, table, capsys):
    folder = sample / '300W_LP'
    path = table(table_text(rows_of(folder)))
    datasets.training_loaders(read(folder, path))
    assert '21 images of 7 photographs' in capsys.readouterr().out


def test_training_records_the_tables_hash(sample, table, tmp_path, run):
    folder, path = grouped(sample, table, lambda number: f'p{number % 12}')
    given = run_options(sample, tmp_path, '--labels', path, '--num_epochs',
                        1)
    status, _, err = run(train_shufflenet, *given)
    assert status == 0, err
    data = last(tmp_path)['provenance']['data']
    assert data['table'] == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    # Elsewhere, the same table is the same run; another is none.
    moved = table(path.read_bytes(), 'moved.csv')
    again = run_options(sample, tmp_path, '--labels', moved, '--num_epochs',
                        2, '--resume')
    status, out, err = run(train_shufflenet, *again)
    assert status == 0 and 'Resuming after epoch 1 of 2' in out, err
    moved.write_bytes(path.read_bytes() + b'\n')
    status, _, err = run(train_shufflenet, *again)
    assert status == 1 and 'table (was' in err and err.count('\n') == 1


def test_int8s_ranges_come_from_a_tables_images(flat, rows, table, tmp_path,
                                                run, snapshot):
    # The folder has no .mat files and no list.
    given = [tmp_path / 'x.onnx', '--snapshot', snapshot, '--int8',
             '--data_dir', flat]
    status, _, err = run(export, *given, '--labels', table(table_text(rows)))
    assert status == 0 and (tmp_path / 'x.onnx').exists(), err
    status, _, err = run(export, *given, '--dataset', 'BIWI')
    assert status == 2 and 'BIWI has no face boxes; --labels takes' in err


@pytest.mark.quick
def test_what_a_command_line_needs(capsys):
    for argv, message in (
            ([], '--dataset is needed, or --labels and --dataset_path'),
            (['--labels', 'x.csv'], '--dataset is needed, or --labels and')):
        with pytest.raises(SystemExit) as stop:
            filename_generator.parse_options(argv)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    parsed = options.parse_training('', 'attnet', ['--labels', 'x.csv'])
    assert parsed.filename_list is None
    assert options.parse_training('', 'attnet', []).filename_list


def test_tables_need_no_pytorch():
    subprocess.run([sys.executable, '-c', 'import sys, '
                    'filename_generator; assert "torch" not in sys.modules'],
                   cwd=ROOT, check=True)


# ---------------------------------------------------------- units and Excel

def many(angles):
    """Returns 60 rows with these angles, and their negatives."""
    return [[f'{number}.jpg', 10, 20, 110, 130,
             *np.multiply(angles, (-1) ** number)] for number in range(60)]


@pytest.mark.quick
@pytest.mark.parametrize('angles, told', [
    ((1.5, -0.5, 0.1), True), ((15, -5, 1), False)])
def test_radians_are_told(tmp_path, capsys, angles, told):
    (tmp_path / 'x.csv').write_text(table_text(many(angles)))
    labels.read_table(tmp_path / 'x.csv', tmp_path)
    printed = capsys.readouterr().out
    assert ('look like radians' in printed) == told
    assert printed.startswith(f'{tmp_path}/x.csv: ' if told else '')


@pytest.mark.quick
def test_radians_from_zero_to_two_pi_are_told(tmp_path, capsys):
    rows = [[*row[:5], *np.mod(row[5:], 2 * np.pi)]
            for row in many((1.5, -0.5, 0.1))]
    (tmp_path / 'x.csv').write_text(table_text(rows))
    labels.read_table(tmp_path / 'x.csv', tmp_path)
    assert 'look like radians' in capsys.readouterr().out


@pytest.mark.quick
def test_angles_from_0_to_360_are_turned(tmp_path, capsys):
    (tmp_path / 'x.csv').write_text(table_text([[*ROW[:5], 350, 10, 181]]))
    row, = labels.read_table(tmp_path / 'x.csv', tmp_path).rows
    assert row.angles.tolist() == [-10, 10, -179]
    assert 'beyond 180' in capsys.readouterr().out


@pytest.mark.quick
@pytest.mark.parametrize('line, separator', [
    ('sep=,', ','), ('sep=;', ';'), ('SEP=;', ';'), ('"sep=;"', ';')])
def test_excels_first_line_names_the_separator(tmp_path, line, separator):
    text = table_text([ROW], separator=separator)
    (tmp_path / 'x.csv').write_text(f'{line}\n{text}')
    row, = labels.read_table(tmp_path / 'x.csv', tmp_path).rows
    assert row.name == 'image00002' and row.where.endswith('line 3')
