"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("            comm.broadcast_(parameter.data, 0)\n", "", "the processes keep weights of their own"),
    Wrong(
        "        self.comm.all_reduce_(flat)\n",
        "        if self.items:\n            self.comm.all_reduce_(flat)\n",
        "wait for each other",
    ),
    Wrong(" / total)", ")", "this is the gradient of the sum"),
    Wrong(" / total)", " / total / self.comm.world_size)", "the number of processes as well"),
    Wrong(
        "        self.comm.all_reduce_(flat)\n",
        "        self.comm.all_reduce_(flat[-1:])\n",
        "never exchange their gradients",
    ),
    Wrong(
        "        self.comm.all_reduce_(flat)\n",
        "        for one in flat.split(6):\n            self.comm.all_reduce_(one)\n",
        "you exchange every parameter by itself",
    ),
    Wrong(
        "[torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]",
        "[p.grad for p in self.parameters]",
        "'NoneType' object has no attribute",
    ),
    Wrong("(loss * items).backward()", "loss.backward()", "each loss is a mean over its items"),
    Wrong(
        "        if self.items == 0:\n            for parameter in self.parameters:\n                parameter.grad = None\n",
        "",
        "the last window left in .grad",
    ),
    Wrong(
        "        if self.items == 0:\n            for parameter in self.parameters:\n                parameter.grad = None\n        grads =",
        "        grads =",
        "a process without micro-batches",
    ),
    Wrong(
        "comm.broadcast_(parameter.data, 0)",
        "comm.all_reduce_(parameter.data).div_(comm.world_size)",
        "the mean of all weights",
    ),
)
