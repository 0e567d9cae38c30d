"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WITH = "        with nullcontext() if last else model.no_sync():\n            loss = F.cross_entropy(model(inputs), labels)\n"
LATE = (
    "        loss = F.cross_entropy(model(inputs), labels)\n        with nullcontext() if last else model.no_sync():\n"
)
LOOP = (
    """    dist.all_reduce(items)
    model.zero_grad()
    for k, (inputs, labels) in enumerate(window):
        last = k == len(window) - 1
"""
    + WITH
    + "            (loss * len(labels) * dist.get_world_size() / items)"
)
WRONG = (
    Wrong(WITH, LATE, "every micro-batch exchanges gradients"),
    Wrong(
        "    dist.all_reduce(items)\n",
        "    items = items * dist.get_world_size()\n",
        "your count covers this process only",
    ),
    Wrong(" * dist.get_world_size() / items", " / items", "the factor W is missing"),
    Wrong(
        "(loss * len(labels) * dist.get_world_size() / items)", "(loss / len(window))", "differ in size and in number"
    ),
    Wrong(
        LOOP,
        "    items = torch.tensor(float(len(window)))\n" + LOOP.replace("len(labels) * ", ""),
        "differ in size and in number",
    ),
    Wrong(
        "        last = k == len(window) - 1\n",
        "        last = k == len(window) - 1\n        dist.all_reduce(torch.ones(()))\n",
        "wait for each other",
    ),
    Wrong("    model.zero_grad()\n", "", "still in the sum"),
    Wrong("nullcontext() if last else model.no_sync()", "model.no_sync()", "gradients are never exchanged"),
    Wrong("    dist.all_reduce(items)\n", "", "and multiply by W"),
    Wrong("last = k == len(window) - 1", "last = k == 0", "with the first micro-batch"),
    Wrong(
        "    dist.all_reduce(items)\n",
        "    if dist.get_rank() == 0:\n        dist.all_reduce(items)\n",
        "wait for each other",
    ),
)
