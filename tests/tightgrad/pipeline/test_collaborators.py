"""What is given to `attach` beside the plan is asked for what the pipeline needs, before anything is touched."""

import functools

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR, AveragedModel

import tightgrad as tg
from support.training import batches, linear, train
from tightgrad.accumulate import Accumulate

PLAN = tg.Plan(accumulate=Accumulate(micro_batches=2))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Climbing(torch.optim.SGD):
    """Needs a closure by name only."""

    def step(self, *, closure):
        return super().step(closure)


class TwoSteps(torch.optim.SGD):
    """The shape of the widespread implementation of sharpness-aware minimisation."""

    def first_step(self):
        pass

    def second_step(self):
        pass


class Asserting(torch.optim.SGD):
    """Needs a closure, and its signature says that it does not."""

    def step(self, closure=None):
        assert closure is not None, "needs a Closure"


class Calling(torch.optim.SGD):
    """As `Asserting`, and finds out by calling it."""

    def step(self, closure=None):
        return closure()


class Needy(torch.optim.SGD):
    def step(self, loss):
        return super().step()


class TestOptimizers:
    @pytest.mark.parametrize("kind", [torch.optim.LBFGS, Climbing, TwoSteps])
    @pytest.mark.parametrize("plan", [tg.Plan(), PLAN])
    def test_a_loop_by_hand_cannot_step_one_that_needs_a_closure(self, kind, plan):
        model = linear()
        before = model.weight.detach().clone()
        pipe = tg.attach(model, kind(model.parameters(), lr=0.1), plan)
        with pytest.raises(tg.UnsupportedError, match=rf"{kind.__name__} evaluates the loss again.*pipe.run\(window"):
            train(pipe, model, batches(2))
        assert torch.equal(model.weight, before)

    def test_a_scheduler_on_the_optimizer_hides_nothing(self):
        """It puts a wrapper in the place of `step`."""
        model = linear()
        optimizer = Needy(model.parameters(), lr=0.1)
        schedules.StepLR(optimizer, 1)
        with pytest.raises(tg.UnsupportedError, match="needs loss"):
            tg.attach(model, optimizer, PLAN)
        optimizer = sgd(model)
        tg.attach(model, optimizer, PLAN, scheduler=schedules.StepLR(optimizer, 1))

    @pytest.mark.parametrize("kind", [Asserting, Calling])
    @pytest.mark.parametrize("plan", [tg.Plan(), PLAN])
    def test_one_that_tells_only_when_it_steps_is_refused_before_weights_move(self, kind, plan):
        model = linear()
        before = model.weight.detach().clone()
        with pytest.raises(tg.UnsupportedError, match="evaluates the loss again"):
            train(tg.attach(model, kind(model.parameters(), lr=0.1), plan), model, batches(2))
        assert torch.equal(model.weight, before)

    def test_other_errors_of_a_step_are_left_alone(self):
        class Broken(torch.optim.SGD):
            def step(self, closure=None):
                raise RuntimeError("out of cheese")

        model = linear()
        with pytest.raises(RuntimeError, match=r"^out of cheese$"):
            train(tg.attach(model, Broken(model.parameters(), lr=0.1), PLAN), model, batches(2))

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (lambda both: dict(zip("ab", both, strict=True)), r"a dict; write attach\(model, list\(optimizers.values"),
            (lambda both: (optimizer for optimizer in both), r"a generator; write attach\(model, list\(optimizers\)"),
            (lambda both: [], "an empty list"),
            (lambda both: [both, both[0]], "holds a list; give the optimizers themselves"),
            (lambda both: [both[0], both[0]], "the same one twice"),
            (lambda both: [both[0], None], "optimizer is None"),
            (lambda both: [both[0], torch.optim.SGD], "is a class"),
            (lambda both: [both[0], torch.optim.LBFGS([both[1].param_groups[0]["params"][0]])], "closure"),
        ],
    )
    def test_several_are_a_list_of_optimizers(self, given, words):
        model = linear()
        both = [torch.optim.SGD([model.weight], lr=0.1), torch.optim.SGD([model.bias], lr=0.1)]
        with pytest.raises(tg.TightGradError, match=words):
            tg.attach(model, given(both), PLAN)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (None, "optimizer is None, .*pass a torch.optim.Optimizer"),
            (0.1, "optimizer is a float"),
            (torch.optim.SGD, r"write SGD\(model.parameters\(\), ...\)"),
            (functools.partial(torch.optim.SGD, lr=0.1), "optimizer is a partial"),
            (linear(), r"write attach\(model, optimizer, plan\)"),
        ],
    )
    def test_something_else(self, given, words):
        with pytest.raises(tg.ConfigError, match=words):
            tg.attach(linear(), given, PLAN)


class TestModels:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (None, "model is None, not a torch.nn.Module"),
            (nn.Linear, "model=Linear is a class"),
            (linear().parameters(), "not its parameters"),
            ([linear(), linear()], r"torch.nn.ModuleList"),
            (sgd(linear()), r"write attach\(model, optimizer, plan\)"),
        ],
    )
    def test_something_else_than_a_module(self, given, words):
        with pytest.raises(tg.ConfigError, match=words):
            tg.attach(given, sgd(linear()), PLAN)
        with pytest.raises(tg.ConfigError, match=words):
            tg.attach_local(given, tg.LocalSGD())

    def test_swapped_arguments(self):
        model = linear()
        with pytest.raises(tg.ConfigError, match=r"write attach\(model, optimizer, plan\)"):
            tg.attach(sgd(model), model, PLAN)

    @pytest.mark.parametrize(
        ("model", "words"),
        [
            (nn.Sequential(linear(), nn.LazyLinear(3)), r"'1.weight' has no shape yet .*one forward before"),
            (nn.Sequential(linear(), nn.Linear(3, 2, device="meta")), r"'1.weight' is on the meta device"),
        ],
    )
    def test_parameters_that_are_not_there_yet(self, model, words):
        with pytest.raises(tg.UsageError, match=words):
            tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN)

    def test_averages_are_not_trained(self):
        model = linear()
        for given in (model, AveragedModel(model)):
            averaged = AveragedModel(given)
            with pytest.raises(tg.UnsupportedError, match=r"averaged.update_parameters\(model\)"):
                tg.attach(averaged, sgd(model), PLAN)


class TestSchedulers:
    def test_one_that_needs_more_than_a_metric_is_refused_before_weights_move(self):
        class Both(schedules.ReduceLROnPlateau):
            def step(self, metrics, epoch):
                pass

        model = linear()
        optimizer = sgd(model)
        with pytest.raises(tg.UnsupportedError, match=r"needs metrics, epoch.*if not record.skipped: scheduler.step"):
            tg.attach(model, optimizer, PLAN, scheduler=Both(optimizer))

    def test_a_metric_that_should_grow_is_not_the_loss(self):
        model = linear()
        optimizer = sgd(model)
        with pytest.raises(tg.ConfigError, match=r'mode="max".*step it yourself'):
            tg.attach(model, optimizer, PLAN, scheduler=schedules.ReduceLROnPlateau(optimizer, mode="max"))

    def test_one_that_needs_a_metric_inside_another(self):
        model = linear()
        optimizer = sgd(model)

        class ByMetric:
            def __init__(self):
                self.optimizer = optimizer

            def step(self, metric):
                pass

        chained = schedules.ChainedScheduler([schedules.StepLR(optimizer, 1), ByMetric()])
        with pytest.raises(tg.UnsupportedError, match=r"ByMetric.*needs metric"):
            tg.attach(model, optimizer, PLAN, scheduler=chained)

    def test_one_that_needs_the_epoch(self):
        class ByEpoch:
            def step(self, epoch, metric=None):
                pass

        model = linear()
        with pytest.raises(tg.UnsupportedError, match=r"ByEpoch.*needs epoch"):
            tg.attach(model, sgd(model), PLAN, scheduler=ByEpoch())

    def test_one_of_another_optimizer(self):
        model = linear()
        stale = schedules.StepLR(sgd(model), 1)
        with pytest.raises(tg.ConfigError, match=r"another optimizer.*StepLR\(optimizer, ...\)"):
            tg.attach(model, sgd(model), PLAN, scheduler=stale)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda optimizer: [schedules.StepLR(optimizer, 1)], "ChainedScheduler"),
            (lambda optimizer: schedules.StepLR, r"write StepLR\(optimizer, ...\)"),
            (lambda optimizer: 0.1, "not a learning rate scheduler"),
            (lambda optimizer: optimizer, "not a learning rate scheduler"),
            (lambda optimizer: lambda step: 0.1, "not a learning rate scheduler"),
        ],
    )
    def test_something_else(self, make, words):
        model = linear()
        optimizer = sgd(model)
        with pytest.raises(tg.ConfigError, match=words):
            tg.attach(model, optimizer, PLAN, scheduler=make(optimizer))

    @pytest.mark.parametrize(
        "make",
        [
            lambda o: schedules.SequentialLR(o, [schedules.ConstantLR(o), schedules.StepLR(o, 1)], [1]),
            lambda o: schedules.ChainedScheduler([schedules.ConstantLR(o), schedules.StepLR(o, 1)]),
            lambda o: tg.Warmup(o, 0.01, num_steps=2),
            lambda o: schedules.OneCycleLR(o, 0.1, total_steps=9),
            lambda o: SWALR(o, 0.1),
            lambda o: schedules.LambdaLR(o, lambda step: 1.0),
        ],
    )
    def test_those_that_step_alone_are_taken(self, make):
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = make(optimizer)
        before = scheduler.last_epoch if hasattr(scheduler, "last_epoch") else 0
        train(tg.attach(model, optimizer, PLAN, scheduler=scheduler), model, batches(4))
        assert scheduler.state_dict().get("last_epoch", before + 2) == before + 2

    def test_accelerates_wrapper_is_refused(self):
        accelerate = pytest.importorskip("accelerate")
        model = linear()
        optimizer = sgd(model)
        wrapped = accelerate.scheduler.AcceleratedScheduler(schedules.StepLR(optimizer, 1), [optimizer])
        with pytest.raises(tg.UnsupportedError, match=r"scheduler=scheduler.scheduler"):
            tg.attach(model, optimizer, PLAN, scheduler=wrapped)

    def test_a_schedule_that_has_ended_leaves_a_step_that_is_counted(self):
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = schedules.OneCycleLR(optimizer, 0.1, total_steps=1)
        pipe = tg.attach(model, optimizer, PLAN, scheduler=scheduler)
        with pytest.raises(ValueError, match="total steps"):
            train(pipe, model, batches(8))
        assert pipe.state.step == 2


class TestOtherArguments:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"plan": None}, r"write tg.Plan\(\)"),
            ({"plan": tg.Plan}, r"write tg.Plan\(\)"),
            ({"plan": tg.Accumulate(4)}, r"write tg.Plan\(accumulate=tg.Accumulate\(micro_batches=4\)\)"),
            ({"plan": tg.clip.Value(1.0)}, r"write tg.Plan\(clip=tg.clip.Value\(max_value=1.0\)\)"),
            ({"plan": tg.codecs.TopK(0.1)}, r"write tg.Plan\(compress=tg.Compress\(codec=tg.codecs.TopK"),
            ({"plan": tg.LocalSGD()}, "attach_local"),
            ({"plan": "{}"}, r"Plan.from_json"),
            ({"plan": {}}, r"Plan.from_config"),
            ({"weight": 4}, r"write weight=lambda batch: 4\."),
            ({"weight": torch.tensor(4)}, "must be a function of a batch"),
            ({"weight": lambda: 4}, "must take one argument, the batch"),
            ({"weight": lambda inputs, labels: 4}, "must take one argument, the batch"),
            ({"records": "runs"}, r"write records=\[tg.records.Jsonl\('runs'\)\]"),
            ({"records": None}, "not a list of writers"),
            ({"records": ["runs"]}, r"records holds a str"),
            ({"records": [tg.records.Jsonl]}, r"records holds the class Jsonl"),
            ({"seed": None}, "seed=None must be an integer, such as seed=0"),
            ({"seed": 1.0}, "seed=1.0 must be an integer; write seed=1"),
        ],
    )
    def test_something_else(self, arguments, words):
        model = linear()
        plan = arguments.pop("plan", PLAN) if "plan" in arguments else PLAN
        with pytest.raises(tg.ConfigError, match=words):
            tg.attach(model, sgd(model), plan, **arguments)

    def test_a_writer_that_is_not_in_a_list(self, tmp_path):
        model = linear()
        with pytest.raises(tg.ConfigError, match=r"write records=\[Jsonl\(...\)\]"):
            tg.attach(model, sgd(model), PLAN, records=tg.records.Jsonl(tmp_path))

    def test_writers_from_a_generator_are_all_told(self, tmp_path):
        model = linear()
        pipe = tg.attach(model, sgd(model), PLAN, records=(tg.records.Jsonl(tmp_path) for _ in range(1)))
        train(pipe, model, batches(2))
        pipe.close()
        assert list(tmp_path.rglob("*.jsonl"))

    def test_weights_that_are_called_otherwise(self):
        model = linear()
        for weight in (len, functools.partial(max, 1), lambda batch, scale=2: 2.0, lambda *batches: 1.0):
            tg.attach(model, sgd(model), PLAN, weight=weight)

    def test_a_scaler_in_the_middle_of_a_step(self):
        model = linear()
        optimizer = sgd(model)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(model(torch.ones(1, model.in_features)).sum()).backward()
        scaler.unscale_(optimizer)
        with pytest.raises(tg.UsageError, match=r"Call scaler.update\(\) before attach"):
            tg.attach(model, optimizer, PLAN, scaler=scaler)
        scaler.update()
        tg.attach(model, optimizer, PLAN, scaler=scaler)

    def test_local_updates_given_as_a_plan(self):
        with pytest.raises(tg.ConfigError, match=r"write tg.DiLoCo\(plan=plan\)"):
            tg.attach_local(linear(), tg.Plan())
