"""One epoch and one evaluation, on a network of one pixel."""
import contextlib
import inspect

import numpy as np
import pytest
import torch

from headpose.errors import Interrupted, RunError
from headpose.geometry.pose import MIRROR
from headpose.training import engine, options
from hopenet import PoseNetwork, decode, pose_loss, spread
from tests.helpers import OneBatch


class Tiny(PoseNetwork):
    """A network that sees an image's mean colour, through a batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.BatchNorm2d(3)
        self.add_heads(3, {})

    def forward(self, x):
        """Maps (N, 3, H, W) to logits (N, 3, 66)."""
        return self.logits(self.norm(x).mean((2, 3)))


class Batches(list):
    """A loader of images, angles and indices, in batches of these sizes."""

    def __init__(self, *sizes):
        rng = np.random.default_rng(0)
        self.indices = rng.permutation(sum(sizes))
        self.images = torch.from_numpy(rng.integers(
            0, 256, (sum(sizes), 3, 4, 4), np.uint8))
        self.angles = rng.uniform(-90, 90, (sum(sizes), 3)).astype(np.float32)
        ends = np.cumsum(sizes)
        super().__init__(
            (self.images[end - size:end], self.angles[end - size:end],
             self.indices[end - size:end]) for end, size in zip(ends, sizes))
        self.batch_sampler = self
        self.served = 0

    def sizes(self):
        """Returns the batches' sizes."""
        return [len(angles) for _, angles, _ in list.__iter__(self)]

    def __iter__(self):
        for batch in super().__iter__():
            self.served += 1
            yield batch


def answers(model, images):
    with torch.no_grad():
        return model.eval()(engine.network_input(images, 'cpu'))


def losses(model, loader, alpha):
    """The loss of each image, in the loader's order."""
    return pose_loss(answers(model, loader.images),
                     torch.from_numpy(loader.angles), alpha).numpy()


# ------------------------------------------------------------------- training

@pytest.mark.parametrize('function', [engine.train_epoch, engine.fit])
def test_called_by_hand_it_does_what_the_scripts_do(function):
    scripts = vars(options.parse_training('', 'attnet', []))
    given = {name: parameter.default for name, parameter
             in inspect.signature(function).parameters.items()
             if parameter.default is not parameter.empty}
    shared = given.keys() & scripts.keys() - {'device', 'amp'}  # the machine's
    assert shared >= {'alpha', 'accumulate', 'as_published'}
    assert {name: given[name] for name in shared} == {
        name: scripts[name] for name in shared}


@pytest.mark.parametrize('alpha', [0.0, 2.0])
@pytest.mark.parametrize('accumulate', [1, 2, 3])
def test_an_epochs_loss_is_the_mean_over_its_images(alpha, accumulate):
    model, loader = Tiny(), Batches(5, 5, 2)
    model.pretrained_norms = ['norm']
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    assert engine.train_epoch(
        model, loader, optimizer, alpha=alpha, accumulate=accumulate
    ) == pytest.approx(losses(model, loader, alpha).mean(), rel=1e-5)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_each_batch_is_a_step_along_its_own_mean_loss(accumulate):
    model, loader, expected = Tiny(), Batches(4, 2), Tiny()
    for each in (model, expected):
        each.pretrained_norms = ['norm']
    engine.train_epoch(model, loader, torch.optim.SGD(
        model.parameters(), 1e-3), accumulate=accumulate)
    expected.eval()
    for images, angles, _ in loader:
        expected.zero_grad()
        pose_loss(expected(engine.network_input(images, 'cpu')),
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
    engine.train_epoch(model, loader, torch.optim.SGD(
        model.parameters(), 0.0), epoch=epoch, as_published=as_published)
    assert bool(model.norm.running_mean.any()) == live
    assert loader.epoch == epoch


def test_a_batch_is_computed_in_as_many_parts_as_are_asked_for():
    images, angles = torch.arange(7), np.arange(7)
    for count, sizes in ((1, [7]), (2, [4, 3]), (3, [3, 3, 1]), (9, [1] * 7)):
        parts = list(engine.batch_parts(images, angles, count))
        assert [len(part) for part, _, _ in parts] == sizes
        assert [last for *_, last in parts] == [
            False] * (len(sizes) - 1) + [True]
        for part, true, _ in parts:
            assert part.tolist() == true.tolist()


@pytest.mark.parametrize('processes, last, synchronised', [
    (1, False, True), (1, True, True), (2, False, False), (2, True, True)])
def test_processes_meet_once_a_batch(monkeypatch, processes, last,
                                     synchronised):
    class Wrapped:
        synchronised = True

        @contextlib.contextmanager
        def no_sync(self):
            self.synchronised = False
            yield

    monkeypatch.setattr(engine, 'world_size', lambda: processes)
    wrapped = Wrapped()
    with engine.wrapped_sync(wrapped, last):
        assert wrapped.synchronised == synchronised


def test_the_gradient_is_of_the_batch_of_all_processes(monkeypatch):
    # Each of three has 2 of its 6 images; DDP takes the mean of the three.
    def gradient(size, processes):
        model = Tiny()
        model.pretrained_norms = ['norm']
        monkeypatch.setattr(engine, 'world_size', lambda: processes)
        images, angles, _ = Batches(2)[0]
        engine.train_epoch(model, OneBatch(images, angles, size),
                           torch.optim.SGD(model.parameters(), 0.0))
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
    engine.train_epoch(model, Batches(3, 3), torch.optim.SGD(
        model.parameters(), 0.0), amp=amp)
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
        engine.train_epoch(model, loader, torch.optim.SGD(
            model.parameters(), 0.0))
    assert loader.served <= engine.CHECK_EVERY


@pytest.mark.parametrize('run', [
    lambda model, loader, **stop: engine.evaluate(model, loader, **stop),
    lambda model, loader, **stop: engine.train_epoch(
        model, loader, torch.optim.SGD(model.parameters(), 0.0), **stop)])
def test_a_signal_ends_an_epoch_after_the_step(run):
    loader = Batches(2, 2, 2)
    with pytest.raises(Interrupted) as caught:
        run(Tiny(), loader, stop=[15, 2])
    assert caught.value.number == 15 and loader.served == 1
    run(Tiny(), loader, stop=[])
    assert loader.served == 1 + 3


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
    np.testing.assert_allclose(result.spread, spread(logits).numpy()[order],
                               atol=1e-4)
    np.testing.assert_allclose(result.errors,
                               np.abs(result.predicted - result.true))
    assert result.loss == pytest.approx(losses(model, loader, alpha).mean())


def test_an_answer_on_two_mirror_images_is_the_mean_of_theirs():
    class Left(Tiny):
        def forward(self, x):
            """Sees the left half only, or mirror images would be one."""
            return super().forward(x[..., :2])

    model, images = Left().eval(), Batches(5).images
    both = engine.predict(model, images, flip=True)
    plain, mirrored = (engine.predict(model, each)
                       for each in (images, images.flip(-1)))
    np.testing.assert_allclose(both.spread,
                               (plain.spread + mirrored.spread) / 2)
    assert (plain.spread != mirrored.spread).all()
    # Of small angles, the mean rotation has nearly the mean angles.
    np.testing.assert_allclose(
        both.angles, (plain.angles + mirrored.angles * MIRROR) / 2, atol=0.2)
    assert np.abs(both.angles - plain.angles).max() > 0.4
    assert torch.equal(both.logits, plain.logits)


@pytest.mark.parametrize('device, processes, kind', [
    ('cuda:0', 2, torch.nn.SyncBatchNorm), ('cuda:0', 1, torch.nn.BatchNorm2d),
    ('cpu', 2, torch.nn.BatchNorm2d)])
def test_batch_norms_of_several_gpus_share_their_statistics(
        monkeypatch, device, processes, kind):
    monkeypatch.setattr(engine, 'world_size', lambda: processes)
    monkeypatch.setattr(engine, 'DistributedDataParallel', lambda model: model)
    model = Tiny()
    assert engine.wrap(model, device, False, False) is model
    assert type(model.norm) is kind


@pytest.mark.parametrize('channels_last', [True, False])
def test_weights_lie_in_memory_as_is_asked(channels_last):
    model = Tiny()
    model.conv = torch.nn.Conv2d(3, 8, 3)
    assert engine.wrap(model, 'cpu', channels_last, compile=False) is model
    assert model.conv.weight.is_contiguous(
        memory_format=torch.channels_last) == channels_last
