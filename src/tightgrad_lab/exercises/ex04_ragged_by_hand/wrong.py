"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("processes * n / total", "n / total", "the factor W is missing"),
    Wrong("processes * n / total", "processes * n / sum(row)", "your count covers one process only"),
    Wrong("processes * n / total", "n / total / processes", "DDP does that already"),
    Wrong("sum(sums) / total", "sum(sums)", "divide it by their number"),
    Wrong(
        "right = sum(sums) / total",
        "right = sum(map(sum, gradients)) / sum(map(len, gradients))",
        "weight each by its tokens",
    ),
    Wrong(
        "sum(sum(row) / len(row) for row in gradients) / processes",
        "sum(map(sum, gradients)) / sum(map(len, gradients))",
        "different K",
    ),
    Wrong("sum(sums) / total", "sum(sums) / total / processes", "counted already"),
    Wrong("zip(sums, tokens)) / processes", "zip(sums, tokens))", "local_count: DDP averages the processes"),
    Wrong("processes * n / total", "len(row) * n / total", "you multiply by K as well"),
)
