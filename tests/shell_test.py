"""train.sh, test.sh and the document's own command lines, as typed."""
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest

import hopenet
import shufflenet
from headpose.geometry import pose
from headpose.readers.lists import read_annotations
from headpose.training import options
from tests.conftest import ROOT, SIZE, run_script

EXPORT = (ROOT / 'export.py').read_text()
QUICK = ['--num_epochs', '1', '--image_size', str(SIZE), '--workers', '0']


@pytest.fixture(scope='module')
def clone(sample, tmp_path_factory):
    """A copy of the scripts whose data/ has nothing but the sample."""
    folder = tmp_path_factory.mktemp('clone')
    for path in (*ROOT.glob('*.py'), *ROOT.glob('*.sh')):
        shutil.copy(path, folder)
    for name in ('headpose', 'tools', 'tests'):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(sample, folder / 'data' / 'sample')
    (folder / 'checkpoints').mkdir()
    shutil.copy(ROOT / 'checkpoints' / 'shufflenet_faces.pkl',
                folder / 'checkpoints')
    return folder


def shell(folder, command):
    """Runs a command line as typed, with this Python as `python`."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']
    return subprocess.run(['bash', '-c', command], cwd=folder, text=True,
                          capture_output=True, timeout=600,
                          env={**os.environ, 'PATH': path})


def test_the_shell_scripts_carry_the_defaults():
    parser = options.training_parser('', 'attnet')
    script = (ROOT / 'train.sh').read_text()
    assigned = dict(re.findall(r'^(\w+)=([\d.]+)$', script, re.MULTILINE))
    assert set(assigned) == {'gpu', 'num_epochs', 'batch_size', 'lr', 'alpha'}
    for name, value in assigned.items():
        assert float(value) == parser.get_default(name), name
    parser = options.evaluation_parser('', 'x.pkl')
    script = (ROOT / 'test.sh').read_text()
    for name, value in re.findall(r'^(\w+)=(\d+)$', script, re.MULTILINE):
        assert int(value) == parser.get_default(name), name


def test_the_recipe_is_the_documents():
    parser = options.training_parser('', 'attnet')
    for name, value in {'num_epochs': 25, 'batch_size': 32, 'lr': 1e-5,
                        'alpha': 2, 'lr_steps': [8, 18], 'image_sizes': [224],
                        'pretrained': 'imagenet', 'split': 'photo',
                        'augment': True, 'landmarks': 'visible',
                        'head_factor': hopenet.HEAD_FACTOR}.items():
        assert parser.get_default(name) == value, name


def test_every_width_of_the_network_is_an_option():
    done = run_script('train_shufflenet.py', '--width', '3')
    assert done.returncode == 2
    assert ', '.join(map(str, shufflenet.CHANNELS)) in done.stderr


@pytest.fixture
def no_torch(tmp_path):
    """An environment in which importing PyTorch is an error."""
    for name in ('torch', 'torchvision'):
        (tmp_path / f'{name}.py').write_text('raise SystemError')
    return {'PYTHONPATH': str(tmp_path)}


@pytest.mark.parametrize('script', [
    'train_attnet.py', 'train_shufflenet.py', 'test_attnet.py',
    'test_shufflenet.py', 'filename_generator.py', 'export.py', 'demo.py',
    'headpose.evaluation.compare'])
def test_help_and_mistakes_do_not_wait_for_pytorch(no_torch, script):
    done = run_script(script, '--help', **no_torch)
    assert done.returncode == 0 and 'usage: ' in done.stdout
    done = run_script(script, '--nonsense', **no_torch)
    assert done.returncode == 2 and 'usage: ' in done.stderr


def test_lists_are_made_without_pytorch(no_torch, sample, tmp_path):
    done = run_script('filename_generator.py', '--dataset', 'AFLW2000',
                      '--dataset_path', sample / 'AFLW2000', '--output',
                      tmp_path / 'list.txt', **no_torch)
    assert done.returncode == 0 and '9 kept' in done.stdout


def test_without_data_both_scripts_use_the_sample_and_say_so(clone):
    # The sample's cycle needs three epochs.
    done = shell(clone, 'bash train.sh shufflenet ' + shlex.join(
        [*QUICK, '--num_epochs', '3']))
    assert done.returncode == 0, done.stderr
    assert 'No data set in data/' in done.stdout
    assert 'Always the training median' in done.stdout
    assert sorted(os.listdir(clone / 'checkpoints')) == [
        'sample', 'shufflenet_faces.pkl']
    done = shell(clone, 'bash test.sh shufflenet')
    assert done.returncode == 0, done.stderr
    assert 'No data set in data/' in done.stdout
    assert 'on the 9 test images.' in done.stdout


def test_every_checkpoint_is_tested_into_two_tables(clone):
    done = shell(clone, 'bash test.sh all')
    assert done.returncode == 0, done.stderr
    tables = done.stdout[done.stdout.index('HopeNet, published'):]
    for words in ('shufflenet.pkl', 'shufflenet_faces.pkl', '1,653,870',
                  'ResNet-50 + CBAM, the document'):
        assert words in tables
    assert (clone / 'output/all/shufflenet_faces/report.html').is_file()


def test_without_a_sample_checkpoint_the_shipped_network_is_tested(clone):
    done = shell(clone, 'bash test.sh')  # attnet: nobody has trained it here
    assert done.returncode == 0, done.stderr
    assert 'testing the network that is shipped' in done.stdout
    assert 'data/AFLW2000' not in done.stderr
    assert done.stdout.count('on the 9 test images.') == 1


def test_the_shipped_networks_figure_needs_data(clone):
    done = shell(clone, 'bash test.sh faces')
    assert done.returncode == 0
    assert 'data/AFLW2000 is not there' in done.stderr
    assert 'on the 9 test images.' in done.stdout


def test_a_missing_checkpoint_says_what_to_do(clone, tmp_path):
    folder = tmp_path / 'clone'
    shutil.copytree(clone, folder)
    (folder / 'data' / 'AFLW2000').mkdir(parents=True)
    done = shell(folder, 'bash test.sh')
    assert done.returncode == 1 and 'checkpoints/resnet.pkl' in done.stderr
    assert 'bash test.sh faces' in done.stderr
    done = shell(folder, 'bash test.sh attnet --snapshot mine.pkl')
    assert done.stderr == 'mine.pkl: no such checkpoint\n'


def test_exports_lines_need_no_pytorch(clone, sample, no_torch):
    """export_test.py compares their angles with the demo's."""
    shutil.copy(sample / 'AFLW2000' / 'image00002.jpg', clone / 'photo.jpg')
    command, = re.findall(r'^    (python export\.py \S+\.onnx)$', EXPORT,
                          re.MULTILINE)
    done = shell(clone, command)
    assert done.returncode == 0, done.stderr
    lines = re.search(r'^    import .*?(?=\n\n\S)', EXPORT,
                      re.DOTALL | re.MULTILINE).group()
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(lines) + '\nprint(*angles[0])'],
        cwd=clone, capture_output=True, text=True, timeout=600,
        env={**os.environ, **no_torch})
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(pose.AXES)


def test_a_pipe_that_is_closed_early_is_no_traceback(clone):
    done = shell(clone, 'python test_shufflenet.py --data_dir '
                 'data/sample/AFLW2000 --snapshot '
                 'checkpoints/shufflenet_faces.pkl | true; '
                 'exit ${PIPESTATUS[0]}')
    assert done.returncode == 141 and 'Traceback' not in done.stderr


def test_the_benchmark_runs(clone):
    done = shell(clone, 'python -m tools.benchmark --quick')
    assert done.returncode == 0, done.stderr
    assert (clone / 'output' / 'benchmark.json').is_file()
    for part in 'abcde':
        assert f'({part}) ' in done.stdout


def test_the_shipped_recipe_needs_data(clone):
    done = shell(clone, 'bash train.sh faces')
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith('train.sh faces: data/300W_LP is not there')


def test_the_shipped_recipe_takes_a_table(clone, sample, tmp_path):
    annotations = read_annotations(
        sample / 'AFLW2000', sample / 'AFLW2000' / 'filename_list.txt')
    rows = [','.join(map(str, (f'{name}.jpg', *box, *angles)))
            for name, box, angles in zip(
                annotations.names, annotations.boxes, annotations.angles)]
    table = tmp_path / 'faces.csv'
    table.write_text('\n'.join([
        'image,x_min,y_min,x_max,y_max,yaw,pitch,roll', *rows]))
    done = shell(clone, 'bash train.sh faces ' + shlex.join(map(str, [
        '--labels', table, '--data_dir', sample / 'AFLW2000', *QUICK,
        '--split', 'image', '--output', tmp_path / 'x.pkl'])))
    assert done.returncode == 0, done.stderr
    assert 'Best epoch 1' in done.stdout


@pytest.mark.parametrize('script', ['train.sh', 'test.sh'])
def test_an_unknown_network_is_refused(clone, script):
    done = shell(clone, f'bash {script} mobilenet')
    assert done.returncode == 2
    assert "'mobilenet' is none of attnet, shufflenet" in done.stderr


def test_the_documents_commands(clone, sample, tmp_path):
    """With data sets in place, every line of the document runs as it is."""
    shutil.copytree(clone, tmp_path / 'clone')
    folder = tmp_path / 'clone'
    shutil.copytree(sample / 'AFLW2000', folder / 'data' / 'AFLW2000')
    shutil.copytree(sample / '300W_LP', folder / 'data' / '300W-LP')
    quick = shlex.join(QUICK)
    for command in (
            'python filename_generator.py --dataset AFLW2000',
            'python filename_generator.py --dataset 300W-LP '
            '--dataset_path ./data/300W-LP',
            f'bash train.sh shufflenet --pretrained none {quick}',
            f'bash train.sh faces {quick} --num_epochs 2',
            'mv data/300W-LP data/300W_LP',
            'python train_attnet.py --gpu 0 --num_epochs 25 --batch_size 32 '
            '--lr 0.00001 --dataset Pose_300W_LP --data_dir ./data/300W_LP/ '
            '--filename_list ./data/300W_LP/filename_list.txt --alpha 2 '
            f'--pretrained none {quick}',
            'bash test.sh',
            'bash test.sh shufflenet',
            'python test_attnet.py --gpu 0 --dataset AFLW2000 --batch_size 32'
            ' --data_dir ./data/AFLW2000/ --filename_list '
            './data/AFLW2000/filename_list.txt --snapshot '
            './checkpoints/resnet.pkl'):
        done = shell(folder, command)
        assert done.returncode == 0, (command, done.stderr)
        assert 'No data set' not in done.stdout
        if 'test' in command.split()[1]:
            assert 'on the 9 test images. Yaw: ' in done.stdout
    assert {'resnet.pkl', 'shufflenet.pkl', 'shufflenet_own.pkl'} <= set(
        os.listdir(folder / 'checkpoints'))


def test_a_script_ends_with_its_status(tmp_path):
    done = run_script('test_attnet.py', '--snapshot', tmp_path / 'none.pkl')
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    done = run_script('train_attnet.py', '--alpha', 'two')
    assert done.returncode == 2
    done = run_script('filename_generator.py', '--dataset', 'AFLW2000',
                      '--dataset_path', tmp_path / 'none')
    assert done.returncode == 1 and done.stderr.count('\n') == 1
