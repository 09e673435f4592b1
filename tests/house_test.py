"""Who imports whom: the contracts in pyproject.toml."""
import os
import shutil
import subprocess
import sys

from tests.conftest import ROOT


def lint_imports(folder):
    """Runs import-linter on a folder's code, by its pyproject.toml."""
    command = os.path.join(os.path.dirname(sys.executable), 'lint-imports')
    return subprocess.run(
        [command, '--no-cache'], cwd=folder, capture_output=True, text=True,
        timeout=600, env={**os.environ, 'PYTHONPATH': str(folder)})


def test_every_import_goes_the_way_that_is_allowed():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_of_pytorch_in_the_geometry_is_found(tmp_path):
    shutil.copytree(ROOT / 'headpose', tmp_path / 'headpose')
    for path in [ROOT / 'pyproject.toml', *ROOT.glob('*.py')]:
        shutil.copy(path, tmp_path)
    with open(tmp_path / 'headpose/geometry/pose.py', 'a') as file:
        file.write('import torch\n')
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'headpose.geometry.pose -> torch' in done.stdout
