"""One epoch and one evaluation, on a network of one pixel."""
import contextlib
import dataclasses
import os
import signal

import numpy as np
import pytest
import torch

from headpose import errors
from headpose.errors import Interrupted, RunError
from headpose.training import engine, options
from headpose.training.recipe import Recipe
from hopenet import PoseNetwork, bin_std, decode, pose_loss
from tests.helpers import OneBatch, trainer_of

pytestmark = pytest.mark.quick


class Tiny(PoseNetwork):
    """A network that sees an image's mean colour, through a batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.BatchNorm2d(3)
        self.add_heads(3, {})

    def maps(self, x):
        """Maps (N, 3, H, W) to the same shape."""
        return self.norm(x)


class Batches(list):
    """A loader of batches of these sizes; the boxes are not known."""

    def __init__(self, *sizes):
        rng = np.random.default_rng(0)
        self.indices = rng.permutation(sum(sizes))
        self.images = torch.from_numpy(rng.integers(
            0, 256, (sum(sizes), 3, 4, 4), np.uint8))
        self.angles = rng.uniform(-90, 90, (sum(sizes), 3)).astype(np.float32)
        ends = np.cumsum(sizes)
        super().__init__(
            (self.images[end - size:end], self.angles[end - size:end],
             self.indices[end - size:end], np.full((size, 4), np.nan))
            for end, size in zip(ends, sizes))
        self.batch_sampler = self
        self.served = 0

    def sizes(self):
        """Returns the batches' sizes."""
        return [len(angles) for _, angles, *_ in list.__iter__(self)]

    def __iter__(self):
        for batch in super().__iter__():
            self.served += 1
            yield batch


def answers(model, images):
    with torch.no_grad():
        return model.eval()(model.normalize(images))


def losses(model, loader, alpha):
    """The loss of each image, in the loader's order."""
    return pose_loss(answers(model, loader.images),
                     torch.from_numpy(loader.angles), alpha).numpy()


# ------------------------------------------------------------------- training

def test_a_recipe_has_the_scripts_names_and_defaults():
    scripts = vars(options.parse_training('', 'attnet', []))
    scripts.update(amp='off', lr_steps=tuple(scripts['lr_steps']))
    assert dataclasses.asdict(Recipe()) == {
        field.name: scripts[field.name]
        for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize('alpha', [0.0, 2.0])
@pytest.mark.parametrize('accumulate', [1, 2, 3])
def test_an_epochs_loss_is_the_mean_over_its_images(alpha, accumulate):
    model, loader = Tiny(), Batches(5, 5, 2)
    model.pretrained_norms = ['norm']
    trainer = trainer_of(model, alpha=alpha, accumulate=accumulate)
    assert engine.train_epoch(trainer, loader) == pytest.approx(
        losses(model, loader, alpha).mean(), rel=1e-5)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_each_batch_is_a_step_along_its_own_mean_loss(accumulate):
    model, loader, expected = Tiny(), Batches(4, 2), Tiny()
    for each in (model, expected):
        each.pretrained_norms = ['norm']
    engine.train_epoch(trainer_of(model, 1e-3, accumulate=accumulate), loader)
    expected.eval()
    for images, angles, *_ in loader:
        expected.zero_grad()
        pose_loss(expected(expected.normalize(images)),
                  torch.from_numpy(angles)).mean().backward()
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter -= 1e-3 * parameter.grad
    for one, other in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('as_published, epoch, live', [
    (False, 1, True), (False, 2, True), (True, 1, True), (True, 2, False)])
def test_only_the_released_code_stops_statistics_after_an_epoch(
        as_published, epoch, live):
    model, loader = Tiny(), Batches(4)
    engine.train_epoch(trainer_of(model, as_published=as_published), loader,
                       epoch)
    assert bool(model.norm.running_mean.any()) == live
    assert loader.epoch == epoch


def test_a_batch_is_computed_in_as_many_parts_as_are_asked_for():
    batch = torch.arange(7), np.arange(7), None, np.arange(7)
    for count, sizes in ((1, [7]), (2, [4, 3]), (3, [3, 3, 1]), (9, [1] * 7)):
        parts = list(engine.batch_parts(
            batch, trainer_of(Tiny(), accumulate=count)))
        assert [len(part) for part, *_ in parts] == sizes
        assert [last for *_, last in parts] == [
            False] * (len(sizes) - 1) + [True]
        for part, true, boxes, _ in parts:
            assert part.tolist() == true.tolist() == boxes.tolist()


@pytest.mark.parametrize('processes, last, synchronised', [
    (1, False, True), (1, True, True), (2, False, False), (2, True, True)])
def test_processes_meet_once_a_batch(monkeypatch, processes, last,
                                     synchronised):
    class DataParallel:
        synchronised = True

        @contextlib.contextmanager
        def no_sync(self):
            self.synchronised = False
            yield

    monkeypatch.setattr(engine, 'world_size', lambda: processes)
    ddp_model = DataParallel()
    with engine.gradient_sync(ddp_model, last):
        assert ddp_model.synchronised == synchronised


def test_the_gradient_is_of_the_batch_of_all_processes(monkeypatch):
    # Each of three has 2 of its 6 images; DDP takes the mean of the three.
    def gradient(size, processes):
        model = Tiny()
        model.pretrained_norms = ['norm']
        trainer = trainer_of(model)  # of one process: no DDP
        monkeypatch.setattr(engine, 'world_size', lambda: processes)
        images, angles, *_ = Batches(2)[0]
        engine.train_epoch(trainer, OneBatch(images, angles, size))
        monkeypatch.setattr(engine, 'world_size', lambda: 1)
        return model.fc_yaw.weight.grad
    torch.testing.assert_close(gradient(6, 3), gradient(2, 1))
    torch.testing.assert_close(gradient(4, 1), gradient(2, 1) / 2)


@pytest.mark.parametrize('amp, dtype', [
    ('off', torch.float32), ('bf16', torch.bfloat16),
    ('fp16', torch.float16)])
def test_the_forward_pass_has_the_precision_that_is_asked_for(amp, dtype):
    model, seen = Tiny(), []
    model.fc_yaw.register_forward_hook(
        lambda module, inputs, out: seen.append(out.dtype))
    trainer = trainer_of(model, amp=amp)
    trainer.scaler = torch.amp.GradScaler(enabled=False)  # needs a GPU
    engine.train_epoch(trainer, Batches(3, 3))
    assert seen == [dtype, dtype]


# --------------------------------------------------------- ends before the end

def test_the_first_loss_that_is_no_number_is_named_by_its_step():
    values = [torch.tensor(float(value))
              for value in ('1', '2', 'inf', 'nan', '3')]
    with pytest.raises(RunError, match='^epoch 7, step 3: the loss is inf;'):
        engine.check_finite(values, 7)
    np.testing.assert_array_equal(engine.check_finite(values[:2], 7), [1, 2])


def test_a_run_that_has_no_numbers_ends_long_before_its_epoch():
    model, loader = Tiny(), Batches(*[1] * 120)
    with torch.no_grad():
        model.fc_pitch.bias.fill_(float('nan'))
    with pytest.raises(RunError, match='^epoch 1, step 1: the loss is nan;'):
        engine.train_epoch(trainer_of(model), loader)
    assert loader.served <= engine.CHECK_EVERY


@pytest.mark.parametrize('run', [
    lambda loader: engine.evaluate(Tiny(), loader),
    lambda loader: engine.train_epoch(trainer_of(Tiny()), loader)])
@pytest.mark.parametrize('number', errors.SIGNALS)
def test_a_signal_ends_an_epoch_after_the_step(run, number):
    loader, before = Batches(2, 2, 2), signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, errors.signals_noted():
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGINT)  # comes twice easily
        run(loader)
    assert caught.value.number == number and loader.served == 1
    assert caught.value.status == 128 + number
    assert signal.getsignal(number) is before
    run(loader)
    assert loader.served == 1 + 3


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As nohup has it: a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with errors.signals_noted() as received:
            signal.raise_signal(signal.SIGHUP)
            assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_after_seconds_ends_the_process_at_once():
    process = os.fork()
    if not process:
        with errors.signals_noted():
            errors.GRACE = -1
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143


@pytest.mark.parametrize('name, text, told', [
    ('OutOfMemoryError', 'CUDA out of memory. Tried', '--accumulate 4'),
    ('RuntimeError', 'DataLoader worker (pid 7) is killed', '--workers'),
    ('RuntimeError', 'DataLoader worker (pid 7) is killed by signal: Bus '
     'error. It is possible that', 'shared memory'),
    ('RuntimeError', 'Caught RuntimeError in DataLoader worker process 0.\n'
     'RuntimeError: unable to write to file </torch_7>: No space', 'shm-size'),
    ('DistBackendError', 'NCCL', 'another process of this run'),
    ('RuntimeError', 'mat1 and mat2', None)])
def test_errors_of_pytorch_that_a_user_can_mend(name, text, told, capsys):
    error = type(name, (RuntimeError,), {})(text)

    def fail():
        raise error
    if told is None:
        with pytest.raises(RuntimeError, match=text):
            errors.run_main(fail)
    else:
        assert errors.run_main(fail) == 1
        err = capsys.readouterr().err
        assert told in err and err.count('\n') == 1


# ---------------------------------------------------------------- the rates

def test_one_cycle_is_pytorchs_step_by_step():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], 0.001)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.001, total_steps=1001, pct_start=101 / 1001,
        cycle_momentum=False)
    ours = torch.optim.AdamW([parameter], 0.001)
    recipe = Recipe(num_epochs=10, one_cycle=True)
    for step in range(1001):
        recipe.set_rates(ours, step / 100)
        assert ours.param_groups[0]['lr'] == pytest.approx(
            optimizer.param_groups[0]['lr'])
        optimizer.step()
        theirs.step() if step < 1000 else None


def test_rates_change_within_an_epoch():
    """The first epoch's rate is not one twenty-fifth to its end."""
    trainer, rates = trainer_of(Tiny(), 1e-3, num_epochs=20,
                                one_cycle=True), []
    trainer.optimizer.register_step_post_hook(
        lambda *_: rates.append(trainer.optimizer.param_groups[0]['lr']))
    engine.train_epoch(trainer, Batches(2, 2, 2))
    assert len(rates) == 3 and (np.diff(rates) > 0).all()
    assert rates[0] == pytest.approx(1e-3 / 25)


def test_steps_fall_to_a_tenth():
    recipe = Recipe()
    assert [recipe.lr_factor(epochs) for epochs in (0, 7.9, 8, 17, 18, 99)
            ] == pytest.approx([1, 1, .1, .1, .01, .01])


def test_the_average_follows_weights_and_statistics():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2),
                                torch.nn.BatchNorm1d(2))
    average = engine.weight_average(model, 0.5)
    expected = {name: tensor.clone().double() for name, tensor
                in model.state_dict().items()}
    for number in range(12):
        with torch.no_grad():
            for tensor in (*model.parameters(), model[1].running_mean):
                tensor += torch.rand_like(tensor)
        average.update_parameters(model)
        # The first update takes all; later ones at least half of the old.
        decay = min(0.5, (1 + number) / (10 + number)) if number else 0
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor
    for name, tensor in average.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name],
                                       rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------- evaluation

@pytest.mark.parametrize('alpha', [0.0, 0.5])
def test_an_evaluation_has_each_images_answer_in_the_indices_order(alpha):
    model, loader = Tiny(), Batches(4, 3, 1)
    logits = answers(model, loader.images)
    result = engine.evaluate(model.train(), loader, alpha=alpha)
    order = loader.indices.argsort()
    assert result.indices.tolist() == list(range(8))
    np.testing.assert_allclose(result.true, loader.angles[order])
    np.testing.assert_allclose(result.predicted,
                               decode(logits).numpy()[order], atol=1e-4)
    np.testing.assert_allclose(result.bin_std, bin_std(logits).numpy()[order],
                               atol=1e-4)
    np.testing.assert_allclose(result.errors,
                               np.abs(result.predicted - result.true))
    assert result.loss == pytest.approx(losses(model, loader, alpha).mean())


@pytest.mark.parametrize('device, processes, kind', [
    ('cuda:0', 2, torch.nn.SyncBatchNorm), ('cuda:0', 1, torch.nn.BatchNorm2d),
    ('cpu', 2, torch.nn.BatchNorm2d)])
def test_batch_norms_of_several_gpus_share_their_statistics(
        monkeypatch, device, processes, kind):
    monkeypatch.setattr(engine, 'world_size', lambda: processes)
    monkeypatch.setattr(engine, 'DistributedDataParallel', lambda model: model)
    model = Tiny()
    trainer = engine.Trainer(model, None, device=device)
    assert trainer.ddp_model is model
    assert type(model.norm) is kind


@pytest.mark.parametrize('channels_last', [True, False])
def test_weights_lie_in_memory_as_is_asked(channels_last):
    model = Tiny()
    model.conv = torch.nn.Conv2d(3, 8, 3)
    trainer = trainer_of(model, channels_last=channels_last)
    assert trainer.ddp_model is model
    assert model.conv.weight.is_contiguous(
        memory_format=torch.channels_last) == channels_last
