"""hubconf.py, as torch.hub loads it into other people's programs."""
import os
import shutil
import subprocess
import sys
import tomllib

import pytest
import torch

import hubconf
from tests.conftest import ROOT

# Others' programs have modules of the names of ours: Hugging Face's datasets.
CODE = '''
import sys, types
for name in 'datasets', 'utils', 'options':
    sys.modules[name] = types.ModuleType(name)
import numpy as np, torch
model = torch.hub.load(sys.argv[1], sys.argv[2], source='local',
                       **eval(sys.argv[3]))
images = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 128), np.uint8)
answers = model.predict(torch.from_numpy(images))
assert not model.training
print(answers.angles.shape, answers.bin_std.shape, model.config)
'''


def load(name, tmp_path, **options):
    """Runs CODE in another folder; returns what it printed."""
    done = subprocess.run(
        [sys.executable, '-c', CODE, ROOT, name, repr(options)],
        cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize('name, options, config', [
    ('shufflenet_faces', {},
     {'network': 'shufflenet', 'width': 1.0, 'box_head': True}),
    ('shufflenet', {'width': 0.5}, {'network': 'shufflenet', 'width': 0.5}),
    ('attnet', {'attention': 'none'},
     {'network': 'attnet', 'attention': 'none'})])
def test_networks_are_loaded_beside_others_modules(tmp_path, name, options,
                                                   config):
    assert load(name, tmp_path, **options) == f'(2, 3) (2,) {config}\n'


def test_weights_in_the_cache_are_compared_with_their_name(tmp_path):
    """A file put there by hand is loaded without a word by PyTorch."""
    weights = hubconf.ShuffleNet().imagenet_weights
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    torch.save({}, tmp_path / 'hub' / 'checkpoints'
               / os.path.basename(weights.url))
    done = subprocess.run(
        [sys.executable, '-c', CODE, ROOT, 'shufflenet',
         "{'pretrained': True}"], capture_output=True, text=True, timeout=600,
        env=os.environ | {'TORCH_HOME': str(tmp_path)})
    assert done.returncode == 1 and 'its SHA-256 does' in done.stderr


def test_networks_are_loaded_beside_the_installed_package(tmp_path):
    """Its modules are those that the hub's finds, once it is imported."""
    with open(ROOT / 'pyproject.toml', 'rb') as file:
        packages = tomllib.load(file)['tool']['setuptools']['packages']
    for package in packages:
        folder = package.replace('.', '/')
        (tmp_path / folder).mkdir()
        for module in (ROOT / folder).glob('*.py'):
            shutil.copy(module, tmp_path / folder)
    done = subprocess.run(
        [sys.executable, '-c', 'import headpose' + CODE, ROOT, 'shufflenet',
         '{}'], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env=os.environ | {'PYTHONPATH': str(tmp_path)})
    assert done.returncode == 0, done.stderr
