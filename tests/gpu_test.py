"""tools.gpu on the CPU, and the precision that --amp auto chooses."""
import json

import pytest
import torch

from hopenet import AttNet
from shufflenet import ShuffleNet
from tools import gpu
from utils import choose_precision


@pytest.mark.parametrize('held, network, expected', [
    ({'amx_bf16': True, 'avx512_bf16': False}, 'attnet', 'bf16'),
    ({'avx512_bf16': True}, 'attnet', 'bf16'),
    ({'avx512_bf16': True}, 'shufflenet', 'off'),
    ({'amx_bf16': False, 'avx512_bf16': False}, 'attnet', 'off'),
    ({'neon': True}, 'attnet', 'off')])
def test_auto_is_bf16_where_it_was_faster(monkeypatch, held, network,
                                          expected):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: held)
    assert choose_precision('auto', 'cpu', network) == expected
    assert choose_precision('off', 'cpu', network) == 'off'


def test_steps_and_checks_run_on_the_cpu(monkeypatch):
    monkeypatch.setattr(gpu, 'NETWORKS', [ShuffleNet])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    options = gpu.parse([])
    assert options.device == 'cpu' and options.batches == (2,)
    rows = [*gpu.precision_checks(options), *gpu.process_check(options),
            *gpu.training_steps(options)]
    assert [row['what'] for row in rows if row.get('bar') == 'NO'] == []
    text = gpu.markdown(rows)
    assert text.count('\n') == len(rows) + 1
    assert 'ShuffleNetV2, batch 2, bf16, compiled' in text


@pytest.mark.parametrize('rate, ratio, peak, expected', [
    (1500, 3.0, 7.9, 'yes'), (1499, 3.0, 7.9, 'NO'), (1500, 2.9, 7.9, 'NO'),
    (1500, 3.0, 8.0, 'NO')])
def test_bars(rate, ratio, peak, expected):
    assert gpu.step_bar(AttNet, 128, 'bf16', rate, ratio, peak) == expected
    assert gpu.step_bar(AttNet, 32, 'bf16', rate, ratio, peak) == ''
    assert gpu.step_bar(ShuffleNet, 128, 'bf16', rate, ratio, peak) == ''


def test_the_command_ends_with_0_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(gpu, 'parts', lambda *_: [
        [{'what': 'a', 'bar': 'NO'}], [{'what': 'b', 'images/s': 1.0}]])
    gpu.main(['--output', str(tmp_path / 'x.json')])
    out = capsys.readouterr().out
    assert out.startswith('no CUDA device here: nothing is measured')
    assert '1 of the bars and checks failed\n  a\n' in out
    assert len(json.loads((tmp_path / 'x.json').read_text())['rows']) == 2
