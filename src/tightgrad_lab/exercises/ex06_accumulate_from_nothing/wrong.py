"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

SHARE = "loss_function(model(inputs), labels) * count / items"
WRONG = (
    Wrong("parameter.grad = torch.zeros_like(parameter)", "parameter.grad = None", ".grad stays None"),
    Wrong(SHARE, "loss_function(model(inputs), labels) / len(window)", "the mean of means"),
    Wrong("int((labels != -100).sum())", "len(labels)", "padding is counted"),
    Wrong("        if count == 0:\n            continue\n", "", "zero times NaN is NaN"),
    Wrong(
        "parameter.grad = torch.zeros_like(parameter)",
        "parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad",
        "still in the sum",
    ),
    Wrong("total += loss.item()", "total += loss", "a float of Python was asked for"),
    Wrong(
        "total += loss.item()", "total = loss_function(model(inputs), labels).item()", "that of the last micro-batch"
    ),
    Wrong(
        "loss = " + SHARE,
        "loss = loss_function(model(torch.cat([x for x, _ in window])), torch.cat([y for _, y in window])) * count / items",
        "rows were in the model at once",
    ),
)
