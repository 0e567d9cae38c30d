"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("noise**2 / micro_batches", "(noise / micro_batches) ** 2", "the square of the noise falls with K"),
    Wrong("math.sqrt(true**2 + noise**2)", "true + noise", "their squares do"),
    Wrong('"factor_many": min(1.0, bound / many)', '"factor_many": bound / many', "at most 1"),
    Wrong("math.ceil(distance / (rate * bound))", "int(distance / (rate * bound)) + 1", "comes out even"),
    Wrong("math.ceil(distance / (rate * bound))", "int(distance / (rate * bound))", "round up"),
    Wrong("bound / math.sqrt(processes)", "bound / processes", "the root of W"),
    Wrong("1 / (micro_batches * factor)", "1 / factor", "accumulation saves traffic"),
    Wrong(
        "math.sqrt(true**2 + noise**2 / micro_batches)", "one / math.sqrt(micro_batches)", "only the noise is averaged"
    ),
    Wrong("bound / math.sqrt(processes)", "bound * math.sqrt(processes)", "larger than the bound"),
    Wrong(
        "(micro_batches * factor)", "(micro_batches * factor * processes)", "the number of processes does not matter"
    ),
    Wrong("1 / (micro_batches * factor)", "micro_batches / factor", "accumulation divides"),
    Wrong("bound / one", "one / bound", "upside down"),
)
