"""Parameters that DDP does not reduce: refused by name where they train, on every rank, and no further."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks

CAST = tg.codecs.Cast("float32")
PLANS = {
    "clip": tg.Plan(clip=tg.clip.GlobalNorm(1.0)),
    "accumulate": tg.Plan(accumulate=tg.Accumulate(2)),
    "guard": tg.Plan(guard=tg.Guard("skip")),
    "dense": tg.Plan(compress=tg.Compress()),
    "explicit": tg.Plan(compress=tg.Compress(CAST, overlap="none")),
    "overlap": tg.Plan(compress=tg.Compress(CAST, overlap="backward")),
}


class Experts(nn.Module):
    """A shared layer, and an expert whose weight is tied to a second name."""

    def __init__(self):
        super().__init__()
        self.shared, self.expert = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, inputs):
        return self.expert(self.shared(inputs)) * self.scale


def wrapped(ignored=(), *, change=lambda model: None, **arguments):
    model = Experts()
    change(model)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(ignored))
    return DistributedDataParallel(model, **arguments)


def told(model, plan):
    """What attach, or the hook where `plan` is None, says of a model."""
    try:
        if plan is None:
            tg.ddp_comm_hook(model, tg.Compress(CAST))
        else:
            tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    except tg.UnsupportedError as error:
        return str(error)
    return ""


def every_way():
    return {name: told(wrapped(["expert.bias"]), plan) for name, plan in {**PLANS, "hook": None}.items()}


def test_every_plan_and_the_hook_refuse_trainable_ignored_parameters_on_every_rank():
    for rank in run_ranks(2, every_way):
        for name, text in rank.items():
            assert "leaves 'expert.bias' out of its reduction" in text, name
            assert "requires_grad_(False)" in text
            assert "tg.Plan()" in text


def freeze(model):
    model.expert.requires_grad_(False)


def tie(model):
    model.other = nn.Linear(4, 4)
    model.other.weight, model.other.bias = model.expert.weight, model.expert.bias


def delayed():
    model = Experts()
    return DistributedDataParallel(
        model,
        delay_all_reduce_named_params=[("expert.weight", model.expert.weight)],
        param_to_hook_all_reduce=model.shared.weight,
    )


def unfrozen_later(count):
    model = wrapped(change=freeze)
    for parameter in list(model.module.expert.parameters())[:count]:
        parameter.requires_grad_(True)
    return model


def added_later():
    model = wrapped()
    model.module.adapter = nn.Linear(4, 2, bias=False)
    return model


def shard_expert(model):
    fully_shard(model.expert, mesh=init_device_mesh("cpu", (1,)))


NAMES = ["expert.weight", "expert.bias"]
KINDS = {
    "frozen": lambda: wrapped(NAMES, change=freeze),
    "one of two names": lambda: wrapped(NAMES, change=tie),
    "both names": lambda: wrapped([*NAMES, "other.weight", "other.bias"], change=tie),
    "with module.": lambda: wrapped([f"module.{name}" for name in NAMES]),
    "of the root": lambda: wrapped(["scale"]),
    "five": lambda: wrapped([*NAMES, "shared.bias"]),
    "delayed": delayed,
    "unfrozen later": lambda: unfrozen_later(2),
    "one unfrozen later": lambda: unfrozen_later(1),
    "added later": added_later,
    "sharded inside": lambda: wrapped(NAMES, change=shard_expert),
    "frozen later": lambda: wrapped(change=freeze),
}


def on_each_kind():
    result = {}
    for name, make in KINDS.items():
        model = make()
        result[name] = told(model, PLANS["clip"]), told(model, None), told(model, tg.Plan())
    return result


def test_what_trains_apart_is_refused_and_what_does_not_is_not():
    (found,) = run_ranks(1, on_each_kind)
    expected = {
        "frozen": "",
        "one of two names": "",
        "both names": "'expert.weight', 'expert.bias' out of",
        "with module.": "",
        "of the root": "",
        "five": "'shared.bias', 'expert.weight', 'expert.bias' out of",
        "delayed": "'expert.weight' out of its reduction (delay_all_reduce_named_params)",
        "unfrozen later": "5 parameters of the model require gradients, and DistributedDataParallel reduces 3",
        "one unfrozen later": "4 parameters of the model require gradients, and DistributedDataParallel reduces 3",
        "added later": "6 parameters of the model require gradients, and DistributedDataParallel reduces 5",
        "sharded inside": "'expert' inside the DistributedDataParallel module is in FSDPLinear as well",
        "frozen later": "",
    }
    assert found.keys() == expected.keys()
    for name, (attached, hooked, empty) in found.items():
        assert attached == hooked, name
        assert empty == "", "the empty plan leaves everything to DDP"
        assert expected[name] in attached, name
        assert bool(expected[name]) == bool(attached), name


def reduced_names(model):
    """The gradients that DDP itself makes alike on two ranks."""
    rank = torch.distributed.get_rank()
    model(torch.full((2, 4), 1.0 + rank)).sum().backward()
    alike = []
    for name, parameter in model.module.named_parameters():
        if parameter.grad is not None:
            both = tg.collectives.TorchCollective().all_gather(parameter.grad)
            alike += [name] if torch.equal(*both) else []
    return alike


def as_ddp_does():
    return {name: reduced_names(KINDS[name]()) for name in ("one of two names", "with module.", "of the root")}


def test_names_match_as_in_torch():
    """What is not refused is reduced by DDP."""
    everything = ["scale", "shared.weight", "shared.bias", "expert.weight", "expert.bias"]
    for rank in run_ranks(2, as_ddp_does):
        assert rank == dict.fromkeys(("one of two names", "with module.", "of the root"), everything)


@pytest.mark.parametrize("plan", [tg.Plan(), PLANS["clip"]])
def test_plain_modules_are_not_asked(plan):
    assert told(Experts(), plan) == ""
