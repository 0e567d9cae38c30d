"""What an Accelerate loop or its settings may not do beside the plan, named in that loop's own words."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DataLoaderConfiguration, DistributedType, GradientAccumulationPlugin
from torch.utils.data import DataLoader

import tightgrad as tg
from support.accelerate_state import reset
from support.ranks import run_ranks
from support.tagging import BATCH, PLANS, STEPS, Tagger, Tokens, check_equal, launched, num_tokens, raw_loop, weights_of
from tightgrad.integrations.accelerate import TightAccelerator
from tightgrad.integrations.accelerate_checks import check_supported

CLIPPED = PLANS["clipped"]
pytestmark = pytest.mark.filterwarnings("ignore:the loop over the training loader was left:tightgrad.TightGradWarning")


def make(plan=CLIPPED, ranks=1, steps=STEPS, optimizer_class=torch.optim.SGD, **kwargs):
    if "gradient_accumulation_plugin" not in kwargs:
        kwargs["gradient_accumulation_steps"] = steps
    accelerator = TightAccelerator(plan=plan, weight=num_tokens, cpu=True, **kwargs)
    model = Tagger()
    optimizer = optimizer_class(model.parameters(), lr=0.5)
    return accelerator, *accelerator.prepare(model, optimizer, DataLoader(Tokens(ranks), batch_size=BATCH))


def unmoved(model):
    return all(torch.equal(value, Tagger().state_dict()[name]) for name, value in weights_of(model).items())


def train(accelerator, model, optimizer, loader, *, steps_at=lambda number: True, backward_at=lambda number: True):
    for number, batch in enumerate(loader):
        loss = model(**batch)["loss"]
        if backward_at(number):
            accelerator.backward(loss)
        if steps_at(number):
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_loop_that_counts_its_steps_itself_is_told_what_to_write(steps):
    accelerator, model, optimizer, loader = make(steps=steps)
    with pytest.raises(tg.UsageError, match=r"after the last of \d batch.*drop that `if`.*accumulation_steps=K"):
        train(accelerator, model, optimizer, loader, steps_at=lambda number: (number + 1) % 4 == 0)
    assert unmoved(model)


def test_a_loop_that_leaves_out_the_last_partial_window_is_told():
    accelerator, model, optimizer, loader = make()
    with pytest.raises(tg.UsageError, match="after the last of 3 batches"):
        train(accelerator, model, optimizer, loader, steps_at=lambda number: (number + 1) % STEPS == 0)


@pytest.mark.parametrize("missing", [0, 2, 3])
def test_a_batch_without_backward_is_named(missing):
    accelerator, model, optimizer, loader = make()
    with pytest.raises(tg.UsageError, match=r"accelerator.backward\(loss\) was called for \d of the \d batches"):
        train(accelerator, model, optimizer, loader, backward_at=lambda number: number != missing)
    assert unmoved(model)


def test_two_backwards_of_a_batch_are_named():
    accelerator, model, _, loader = make()
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        with pytest.raises(tg.UsageError, match=r"accelerator.backward\(loss\) was called twice for one batch"):
            accelerator.backward(model(**batch)["loss"])
        break


def test_a_loader_that_is_only_read_leaves_nothing_open():
    accelerator, model, optimizer, loader = make()
    with torch.no_grad():
        assert len([model(**batch) for batch in loader]) == 7
    assert not accelerator.in_window
    train(accelerator, model, optimizer, loader)
    assert accelerator.pipe.state.step == 2


def test_backward_outside_of_a_prepared_loader_is_refused():
    accelerator, model, _, _ = make()
    for batch in DataLoader(Tokens(), batch_size=BATCH):
        with pytest.raises(tg.UsageError, match=r"outside of a loop over a prepared loader.*accelerator.prepare\(\)"):
            accelerator.backward(model(**batch)["loss"])
        break


def test_a_loader_that_skips_batches_fetches_windows_too():
    weights, _, _ = raw_loop(CLIPPED)
    accelerator, model, optimizer, loader = make()
    for number, batch in enumerate(loader, 1):
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        if number == STEPS:
            break
    train(accelerator, model, optimizer, accelerator.skip_first_batches(loader, STEPS))
    assert accelerator.pipe.state.step == 2
    check_equal(weights_of(model), weights)


def test_clipping_a_part_of_the_parameters_is_refused():
    accelerator, model, _, loader = make()
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        with pytest.raises(tg.UsageError, match=r"clips 1 of the 3 trainable parameters, without 'head.bias'"):
            accelerator.clip_grad_norm_(model.embed.parameters(), 0.1)
        with pytest.raises(tg.UsageError, match=r"clips 1 of the 3"):
            accelerator.clip_grad_norm_(model.embed.weight, 0.1)
        assert accelerator.clip_grad_norm_(list(model.parameters()), 0.1).isnan()
        break


def test_clipping_of_values_must_be_the_plans():
    accelerator, model, _, loader = make(tg.Plan(clip=tg.clip.Value(0.1)))
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        accelerator.clip_grad_value_(model.parameters(), 0.1)
        with pytest.raises(tg.UsageError, match=r"asks for Value\(max_value=0.2\), but the plan clips with Value"):
            accelerator.clip_grad_value_(model.parameters(), 0.2)
        with pytest.raises(tg.UsageError, match="asks for GlobalNorm"):
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
        break


def plugin(**settings):
    return GradientAccumulationPlugin(num_steps=STEPS, **settings)


def test_sync_each_batch_becomes_part_of_the_plan():
    accelerator, *_ = make(gradient_accumulation_plugin=plugin(sync_each_batch=True))
    assert accelerator.plan.accumulate == tg.Accumulate(STEPS, fetch="window", sync="every")


@pytest.mark.parametrize(
    ("plan", "text"),
    [(PLANS["compressed"], "the plan has compress"), (tg.Plan(tg.Accumulate(STEPS, sync="last")), 'has sync="last"')],
)
def test_sync_each_batch_where_it_cannot_be_had(plan, text):
    with pytest.raises(tg.ConfigError, match=rf"sync_each_batch=True\) reduces.*{text}"):
        make(plan, gradient_accumulation_plugin=plugin(sync_each_batch=True))


def test_windows_over_the_end_of_an_epoch_are_refused():
    with pytest.raises(tg.UnsupportedError, match="sync_with_dataloader=False"):
        make(gradient_accumulation_plugin=plugin(sync_with_dataloader=False))


def test_several_models_are_refused():
    accelerator = TightAccelerator(plan=CLIPPED, cpu=True)
    models = Tagger(), Tagger()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in models]
    with pytest.raises(tg.UnsupportedError, match="2 models were prepared, and TightAccelerator trains one"):
        accelerator.prepare(*models, *optimizers)


def test_a_second_optimizer_of_the_same_parameters_is_refused():
    accelerator, model, _, _ = make()
    with pytest.raises(tg.UsageError, match="is in 2 of the optimizers"):
        accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))


def settings(**given):
    unset = {"scaler": None, "distributed_type": DistributedType.NO, "parallelism_config": None}
    return SimpleNamespace(**{**unset, "state": SimpleNamespace(fsdp_plugin=None), **given})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"scaler": object()}, "GradScaler of its own"),
        ({"distributed_type": DistributedType.DEEPSPEED}, "DeepSpeed owns the gradient path"),
        ({"distributed_type": DistributedType.MEGATRON_LM}, "Megatron-LM owns the gradient path"),
        ({"state": SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))}, "fsdp_version=2"),
        ({"parallelism_config": SimpleNamespace(tp_size=2)}, r"ParallelismConfig\(tp_size=2\)"),
        ({"parallelism_config": SimpleNamespace(tp_size=1, cp_size=2)}, r"ParallelismConfig\(cp_size=2\)"),
    ],
)
def test_settings_that_are_refused(given, text):
    with pytest.raises(tg.UnsupportedError, match=text):
        check_supported(settings(**given))


def test_settings_that_are_taken():
    two = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=2))
    check_supported(settings(state=two, parallelism_config=SimpleNamespace(tp_size=1, dp_shard_size=4)))


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning")
@pytest.mark.parametrize("linked", [True, False])
def test_schedules_step_when_accelerates_would(linked):
    accelerator, model, optimizer, loader = make(step_scheduler_with_optimizer=linked)
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step))
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5 * 0.5 ** (2 if linked else 7)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning")
def test_a_step_that_the_guard_skips_is_none_for_the_schedule():
    accelerator, model, optimizer, loader = make(tg.Plan(guard=tg.Guard(on_nonfinite="skip")))
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step))
    for number, batch in enumerate(loader):
        accelerator.backward(model(**batch)["loss"] * (torch.inf if number == 0 else 1.0))
        optimizer.step()
        scheduler.step()
    assert accelerator.pipe.state.step == 1
    assert optimizer.param_groups[0]["lr"] == 0.25


def every_batch_ranks(each):
    with launched():
        try:
            given = plugin(sync_each_batch=each)
            accelerator, model, optimizer, loader = make(ranks=2, gradient_accumulation_plugin=given)
            train(accelerator, model, optimizer, loader)
            weights, nbytes = weights_of(model), accelerator.pipe.adapter.collective.traffic.nbytes
            with pytest.raises(tg.UnsupportedError, match="join_uneven_inputs is not needed"):
                accelerator.join_uneven_inputs([model])
        finally:
            reset()
    wanted, _, _ = raw_loop(CLIPPED)
    assert all(torch.allclose(value, weights[name], rtol=1e-5, atol=1e-7) for name, value in wanted.items())
    return nbytes


def test_sync_each_batch_sends_after_each_batch():
    last, every = run_ranks(2, every_batch_ranks, False), run_ranks(2, every_batch_ranks, True)
    assert every[0] > 3 * last[0]


def test_a_step_that_accelerate_does_not_see_is_named():
    accelerator, model, optimizer, loader = make()
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        with pytest.raises(tg.UsageError, match=r"Call step\(\) on the optimizer that accelerator.prepare"):
            optimizer.optimizer.step()
        break
    assert unmoved(model)


def uneven_ranks(name, batches, drop_last):
    plan = CLIPPED if name == "wrapper" else tg.Plan(compress=tg.Compress(tg.codecs.Cast("float32")))
    with launched():
        try:
            accelerator = TightAccelerator(
                plan=plan,
                gradient_accumulation_steps=2,
                cpu=True,
                dataloader_config=DataLoaderConfiguration(even_batches=False),
            )
            rows = DataLoader(torch.ones(2 * batches, 4), batch_size=2, drop_last=drop_last)
            model = torch.nn.Linear(4, 1)
            model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), rows)
            try:
                for batch in loader:
                    accelerator.backward(model(batch).square().mean())
                    optimizer.step()
            except tg.UsageError as error:
                return str(error)
            return accelerator.pipe.state.step
        finally:
            reset()


@pytest.mark.parametrize(
    ("name", "batches", "drop_last", "found"),
    [
        ("wrapper", 6, False, 2),
        ("wrapper", 5, False, "the ranks have 3, 2 batches"),
        ("wrapper", 5, True, 1),
        ("wrapper", 7, False, "the ranks have 4, 3 batches"),
        ("compressed", 5, False, "the ranks have 3, 2 batches"),
        ("compressed", 7, False, 2),
    ],
)
def test_ranks_whose_loaders_end_at_different_steps_are_told(name, batches, drop_last, found):
    results = run_ranks(2, uneven_ranks, name, batches, drop_last)
    assert all(result == found if isinstance(found, int) else found in result for result in results)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from torch.ones(10, 4)


def without_a_length():
    with launched():
        try:
            settings = DataLoaderConfiguration(even_batches=False)
            accelerator = TightAccelerator(
                plan=CLIPPED, gradient_accumulation_steps=2, cpu=True, dataloader_config=settings
            )
            model = torch.nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(Stream(), batch_size=2))
            for batch in loader:
                accelerator.backward(model(batch).square().mean())
                optimizer.step()
            return accelerator.pipe.state.step
        finally:
            reset()


def test_loaders_without_a_length_are_not_compared():
    assert run_ranks(2, without_a_length) == [2, 2]


def leave_after(number, accelerator, model, optimizer, loader, *, backward=True):
    for count, batch in enumerate(loader, 1):
        if backward:
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
        if count == number:
            break


def leave_twice(number, *parts):
    leave_after(number, *parts)
    leave_after(number, *parts)


def test_a_loop_that_is_left_in_mid_window_is_told_once():
    parts = make()
    with pytest.warns(tg.TightGradWarning, match=r"left .* after 2 of the 4 batches .* dropped") as told:
        leave_twice(2, *parts)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert unmoved(parts[1])


@pytest.mark.filterwarnings("error::tightgrad.TightGradWarning")
@pytest.mark.parametrize(("number", "backward", "steps"), [(STEPS, True, 1), (7, True, 2), (2, False, 0)])
def test_a_loop_that_is_left_after_a_step_or_only_reads_is_not_told(number, backward, steps):
    parts = make()
    leave_after(number, *parts, backward=backward)
    assert parts[0].pipe.state.step == steps
