"""What `pipe.run_cached` cannot do right, it says before anything is stepped; the next window goes on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg
from support.contrastive import Towers, batches, encode, loss_of
from support.training import on_ranks


def windows_of(model, plan=None, loader=None, **arguments):
    plan = plan or tg.Plan(accumulate=tg.Accumulate(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, plan, weight=lambda batch: len(batch[0]), **arguments)
    return pipe, pipe.windows(loader or batches(4) * 2)


def refused(error, match, *, model=None, encode=encode, loss=loss_of, plan=None, loader=None):
    """It raises, no weight has moved, and the next window can be run."""
    model = model or Towers()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    pipe, windows = windows_of(model, plan, loader)
    with pytest.raises(error, match=match):
        pipe.run_cached(next(windows), lambda b: encode(model, b), lambda z: loss(model, z))
    pipe.abandon()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    return pipe, windows, model


class Normalised(Towers):
    def __init__(self, layer):
        super().__init__()
        self.body[1] = layer


@pytest.mark.filterwarnings("ignore:BatchNorm in training mode:tightgrad.TightGradWarning")
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(32), nn.SyncBatchNorm(32), nn.BatchNorm1d(32, momentum=None)])
def test_batch_norm_is_refused_by_name(layer):
    refused(tg.UnsupportedError, r"'body\.1' \(1 such layers\) normalises.*\.eval\(\)", model=Normalised(layer))


def test_batch_norm_that_is_frozen_is_right():
    model = Normalised(nn.BatchNorm1d(32).eval())
    pipe, windows = windows_of(model)
    assert pipe.run_cached(next(windows), lambda b: encode(model, b), lambda z: loss_of(model, z)).step == 0


class Centred(Towers):
    def forward(self, inputs):
        z = self.body(inputs)
        return F.normalize(z - z.mean(0))


class Whitened(Towers):
    def forward(self, inputs):
        return F.batch_norm(self.body(inputs), None, None, training=True)


class Attending(Towers):
    """Samples that attend to each other."""

    def forward(self, inputs):
        z = self.body(inputs)
        return (z @ z.T).softmax(1) @ z


@pytest.mark.parametrize("kind", [Centred, Whitened, Attending])
def test_representations_that_depend_on_other_samples_are_refused(kind):
    refused(tg.UnsupportedError, "depend on one sample each.*belong into the loss", model=kind())


def test_running_again_with_smaller_micro_batches_is_not_needed():
    plan = tg.Plan(accumulate=tg.Accumulate(4, on_oom="split"))
    refused(tg.UnsupportedError, "the gradient is the same for any number of them", plan=plan)


@pytest.mark.parametrize("fetch", ["auto", "batch"])
def test_a_loader_that_reuses_its_buffer_is_told_to_copy(fetch):
    def one_buffer():
        first, second = torch.empty(8, 16), torch.empty(8, 16)
        for batch in batches(4):
            yield first.copy_(batch[0]), second.copy_(batch[1])

    plan = tg.Plan(accumulate=tg.Accumulate(4, fetch=fetch))
    refused(tg.UsageError, r"uses every micro-batch of a window twice.*clone\(\)", plan=plan, loader=one_buffer())


def test_a_noise_scale_does_not_fit():
    plan = tg.Plan(accumulate=tg.Accumulate(4), noise_scale=tg.scaling.NoiseScale())
    refused(tg.UnsupportedError, "noise_scale", plan=plan)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda model, b: (model(b[0]), "text"), "encode.. returned a str"),
        (lambda model, b: model.temperature, "no representation with a row a sample"),
        (lambda model, b: torch.cat(encode(model, b)), "16 rows for a batch of 8 samples.*two views as two tensors"),
        (lambda model, b: (*encode(model, b), model.temperature.view(1)), "1 and 8 rows.*logit_scale.squeeze"),
        (
            lambda model, b: (*encode(model, b), b[0].mean()),
            "a scalar that is not the same for all micro-batches",
        ),
        (lambda model, b: tuple(z.detach() for z in encode(model, b)), "depends on a trainable parameter"),
        (lambda model, b: [*encode(model, b)][: 1 + (b[0][0, 0] > 0)], "for one micro-batch and .* for another"),
        (
            lambda model, b: tuple(F.pad(z, (0, int(b[0][0, 0] > 0))) for z in encode(model, b)),
            "rows of two micro-batches' representations differ",
        ),
    ],
)
def test_what_is_no_representation_is_told(made, match):
    refused(tg.UsageError, match, encode=made, loss=lambda model, z: loss_of(model, z[:2]))


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda model, z: z[0], "has the shape"),
        (lambda model, z: {"other": loss_of(model, z)}, "the plan's losses are"),
        (lambda model, z: None, "takes the loss, a scalar tensor, and got None"),
    ],
)
def test_what_is_no_loss_is_told(loss, match):
    refused(tg.UsageError, match, loss=loss)


def test_an_unknown_view_of_ranks_is_named():
    model = Towers()
    pipe, windows = windows_of(model)
    with pytest.raises(tg.ConfigError, match="choose one of 'all_ranks', 'own_rank'"):
        pipe.run_cached(next(windows), lambda b: encode(model, b), lambda z: loss_of(model, z), sees="ranks")


class OwnGenerator(Towers):
    """Noise that no global generator draws."""

    generator = torch.Generator().manual_seed(0)

    def forward(self, inputs):
        if torch.is_grad_enabled():
            inputs = inputs + torch.randn(inputs.shape, generator=self.generator)
        return super().forward(inputs)


class Counting(Towers):
    """With a buffer that each forward changes, and that matters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, inputs):
        self.forwards += 1
        return self.body(inputs + 0.01 * self.forwards)


@pytest.mark.parametrize("kind", [OwnGenerator, Counting])
def test_a_second_pass_that_differs_is_an_error(kind):
    refused(tg.UsageError, "gave other representations than the first", model=kind())


def test_an_error_of_one_rank_stops_all_of_them():
    def body(where):
        def on_rank(collective):
            model = Towers()
            pipe, windows = windows_of(model, loader=batches(4, collective.rank, 2), collective=collective)

            def failing(*_):
                if collective.rank == 1:
                    raise KeyError("image")
                return True

            made = lambda b: failing() and encode(model, b) if where == "encode" else encode(model, b)  # noqa: E731
            lost = lambda z: failing() and loss_of(model, z) if where == "loss" else loss_of(model, z)  # noqa: E731
            pipe.run_cached(next(windows), made, lost)

        return on_rank

    for where in ("encode", "loss"):
        first, second = on_ranks(2, body(where))
        assert isinstance(second, KeyError)
        assert "run_cached() failed on rank 1, which says why" in str(first)


def test_an_error_in_the_second_pass_of_one_rank_stops_all_of_them():
    def body(collective):
        model, calls = Towers(), []
        pipe, windows = windows_of(model, loader=batches(4, collective.rank, 2), collective=collective)

        def made(batch):
            calls.append(torch.is_grad_enabled())
            if collective.rank == 1 and calls.count(True) == 3:
                raise KeyError("image")
            return encode(model, batch)

        pipe.run_cached(next(windows), made, lambda z: loss_of(model, z))

    first, second = on_ranks(2, body)
    assert isinstance(second, KeyError)
    assert "failed on another rank" in str(first)


def test_one_micro_batch_on_each_of_two_ranks_is_looked_at():
    def body(collective):
        model = Centred()
        plan = tg.Plan(accumulate=tg.Accumulate(1))
        pipe, windows = windows_of(model, plan, loader=batches(1, collective.rank, 2), collective=collective)
        pipe.run_cached(next(windows), lambda b: encode(model, b), lambda z: loss_of(model, z))

    for error in on_ranks(2, body):
        assert isinstance(error, tg.UnsupportedError)
        assert "depend on one sample each" in str(error)


def test_ranks_with_different_representations_are_told():
    def body(collective):
        model = Towers()
        pipe, windows = windows_of(model, loader=batches(4, collective.rank, 2), collective=collective)
        made = lambda b: tuple(z.to(torch.float64 if collective.rank else torch.float32) for z in encode(model, b))  # noqa: E731
        pipe.run_cached(next(windows), made, lambda z: loss_of(model, z))

    for error in on_ranks(2, body):
        assert isinstance(error, tg.RankMismatchError)
        assert "float64" in str(error)


def test_gathering_what_is_gathered_already_is_an_error():
    def body(collective):
        model = Towers()
        pipe, windows = windows_of(model, loader=batches(4, collective.rank, 2), collective=collective)
        pipe.run_cached(
            next(windows),
            lambda b: encode(model, b),
            lambda z: loss_of(model, tuple(tg.gather_with_grad(part, collective) for part in z)),
        )

    for error in on_ranks(2, body):
        assert isinstance(error, tg.UsageError)
        assert "of all ranks already" in str(error)


def test_after_an_error_the_next_window_is_right():
    model = Towers()
    pipe, windows = windows_of(model)
    with pytest.raises(tg.UsageError):
        pipe.run_cached(next(windows), lambda b: encode(model, b), lambda z: None)
    pipe.abandon()
    record = pipe.run_cached(next(windows), lambda b: encode(model, b), lambda z: loss_of(model, z))
    assert (record.step, record.skipped) == (0, False)


def test_outside_of_a_window():
    model = Towers()
    pipe, windows = windows_of(model)
    window = next(windows)
    pipe.abandon()
    with pytest.raises(tg.UsageError, match=r"run_cached\(\) needs a window"):
        pipe.run_cached(window, lambda b: encode(model, b), lambda z: loss_of(model, z))


def test_an_optimizer_that_takes_several_gradients_a_step():
    model = Towers()
    pipe = tg.attach(model, torch.optim.LBFGS(model.parameters()), tg.Plan(accumulate=tg.Accumulate(4)))
    with pytest.raises(tg.UnsupportedError, match="gives it one gradient a window"):
        pipe.run_cached(next(pipe.windows(batches(4))), lambda b: encode(model, b), lambda z: loss_of(model, z))
