"""Private attributes of torch: what is gone or cannot be set is refused by name, when a model is attached."""

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.adapters.ddp import check_ddp_internals
from tightgrad.adapters.parts.fsdp2_grads import HeldGrad, make_dtypes_equal, unsharded_grad
from tightgrad.adapters.parts.fsdp2_torch import is_fsdp2, look_before_post_backward, param_groups
from tightgrad.adapters.parts.torch_private import can_set, check_can_set, check_has

ONES = torch.ones(3)


class Param214:
    """As in torch up to 2.14: an attribute, for gradients of another dtype than the parameter's."""

    def __init__(self, dtype=torch.float32):
        self.unsharded_accumulated_grad = None
        self.sharded_param = nn.Parameter(torch.zeros(3))
        self._unsharded_param = nn.Parameter(torch.zeros(3, dtype=dtype))


class Param215:
    """As in torch 2.15: a property that reads what waits in the sharded parameter, or else in the unsharded one."""

    def __init__(self):
        self.sharded_param = nn.Parameter(torch.zeros(3))

    def forward(self):
        if not hasattr(self, "_unsharded_param"):
            self._unsharded_param = nn.Parameter(torch.zeros(3))

    def publish(self):
        self.sharded_param.grad, self._unsharded_param.grad = self._unsharded_param.grad, None

    @property
    def unsharded_accumulated_grad(self):
        if self.sharded_param.grad is not None:
            return self.sharded_param.grad
        leaf = getattr(self, "_unsharded_param", None)
        return None if leaf is None else leaf.grad


class WithoutAny(Param214):
    def __init__(self):
        super().__init__()
        del self.unsharded_accumulated_grad


def test_an_attribute_is_set_where_it_is():
    param = Param214()
    held = HeldGrad(param)
    held.put(ONES)
    assert param.unsharded_accumulated_grad is ONES
    held.arrive()
    assert held.get() is ONES
    held.put(None)
    assert held.get() is None
    param._unsharded_param.grad = ONES
    assert held.get() is ONES
    held.put(None)
    assert held.get() is None


def test_a_gradient_waits_for_the_first_forward_where_torch_has_only_a_property():
    param = Param215()
    held = HeldGrad(param)
    held.put(2 * ONES)
    held.arrive()  # no forward has been
    assert torch.equal(held.get(), 2 * ONES)
    assert unsharded_grad(param) is None
    param.forward()
    param._unsharded_param.grad = ONES.clone()  # a backward
    held.arrive()
    held.arrive()  # a second call of the same backward adds nothing
    assert torch.equal(held.get(), 3 * ONES)
    assert torch.equal(param._unsharded_param.grad, 3 * ONES)


@pytest.mark.parametrize("published", [True, False])
def test_a_gradient_is_dropped_wherever_torch_keeps_it(published):
    param = Param215()
    param.forward()
    param._unsharded_param.grad = ONES.clone()
    if published:
        param.publish()
    held = HeldGrad(param)
    assert torch.equal(held.get(), ONES)
    held.put(None)
    assert held.get() is None
    assert param.sharded_param.grad is None
    assert param._unsharded_param.grad is None


def test_a_gradient_of_a_dtype_that_torch_does_not_take_is_named():
    param = Param215()
    held = HeldGrad(param)
    held.put(ONES.double())
    param.forward()
    with pytest.raises(tg.UnsupportedError, match=r"torch \d.*no gradient of torch.float64.*sync=\"every\""):
        held.arrive()


def test_what_cannot_be_set_is_not_an_objects_own():
    assert can_set(Param214(), "unsharded_accumulated_grad")
    assert not can_set(Param215(), "unsharded_accumulated_grad")
    assert not can_set(WithoutAny(), "unsharded_accumulated_grad")
    check_has(Param215(), ["unsharded_accumulated_grad"], "a test")
    with pytest.raises(tg.UnsupportedError, match=rf"a test cannot run on torch {torch.__version__[:4]}.*WithoutAny"):
        check_has(WithoutAny(), ["sharded_param", "unsharded_accumulated_grad"], "a test")
    with pytest.raises(tg.UnsupportedError, match=r"Param215 keeps no unsharded_accumulated_grad that could be set"):
        check_can_set(Param215(), ["unsharded_accumulated_grad"], "a test")


def test_dtypes_of_a_unit_are_made_equal_only_where_they_differ():
    earlier, fresh, unused = (Param214(torch.bfloat16) for _ in range(3))
    earlier.unsharded_accumulated_grad = ONES.clone()
    fresh._unsharded_param.grad = ONES.bfloat16() / 3
    make_dtypes_equal([earlier, fresh, unused])
    assert torch.equal(fresh.unsharded_accumulated_grad, (ONES.bfloat16() / 3).float())
    assert fresh._unsharded_param.grad is None
    assert torch.equal(unused.unsharded_accumulated_grad, torch.zeros(3))
    assert unused.unsharded_accumulated_grad.dtype is torch.float32
    alone = Param214(torch.bfloat16)
    alone._unsharded_param.grad = ONES.bfloat16()
    make_dtypes_equal([alone, Param214(torch.bfloat16)])
    assert alone.unsharded_accumulated_grad is None  # torch casts by itself


class Slotted:
    __slots__ = ()

    def post_backward(self):
        """Torch's own."""


def test_a_method_that_cannot_be_replaced_is_named():
    with pytest.raises(tg.UnsupportedError, match=r"Slotted\.post_backward cannot be replaced"):
        look_before_post_backward(Slotted(), lambda: None)


# As fully_shard makes them: a class of this name and of this package, whatever else this version of torch keeps.
FSDPModule = type("FSDPModule", (), {"__module__": "torch.distributed.fsdp._elsewhere"})


class OfAnotherTorch(FSDPModule, nn.Linear):
    pass


class State:
    _fsdp_param_group = None


def test_a_model_of_a_torch_that_keeps_its_groups_elsewhere_is_refused():
    model = OfAnotherTorch(2, 2)
    assert is_fsdp2(model)
    assert not is_fsdp2(nn.Linear(2, 2))
    with pytest.raises(tg.UnsupportedError, match=r"fully_shard \(FSDP2\) cannot run on torch .*_fsdp_param_groups"):
        tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan())
    model._get_fsdp_state = State
    assert param_groups(model) == []


class Reducer:
    def _reset_state(self):
        """Torch's own."""

    def _check_reducer_finalized(self):
        """Torch's own."""


class OldDDP:
    broadcast_buffers = find_unused_parameters = static_graph = False
    _join_config = None

    def __init__(self, reducer):
        self.require_forward_param_sync = True
        self._has_rebuilt_buckets = False
        self.reducer = reducer


class NewDDP(OldDDP):
    @property
    def _has_rebuilt_buckets(self):
        return False

    @_has_rebuilt_buckets.setter
    def _has_rebuilt_buckets(self, value):
        """Only for the class above."""


def test_ddp_that_lacks_what_is_set_or_called_is_refused():
    check_ddp_internals(OldDDP(Reducer()))
    with pytest.raises(tg.UnsupportedError, match=r"NewDDP keeps no _has_rebuilt_buckets"):
        check_ddp_internals(NewDDP(Reducer()))
    with pytest.raises(tg.UnsupportedError, match=r"whether it waits, cannot run .*has no _reset_state"):
        check_ddp_internals(OldDDP(object()))
