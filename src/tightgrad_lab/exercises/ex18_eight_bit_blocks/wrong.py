"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("rows.abs().amax(1) / 127", "rows.abs().max().expand(count) / 127", "one scale serves the whole vector"),
    Wrong("rows.abs().amax(1) / 127", "rows.amax(1) / 127", "not the largest magnitude"),
    Wrong(".amax(1) / 127", ".amax(1) / 128", "divide by 127"),
    Wrong(".round().to", ".to", "cuts off towards zero"),
    Wrong("to(torch.int8)", "to(torch.int32)", "4 bytes each"),
    Wrong("count = -(-len(vector) // block)", "count = len(vector) // block", "raises RuntimeError"),
    Wrong(
        "    count = -(-len(vector) // block)\n",
        "    vector *= 1.0001\n    count = -(-len(vector) // block)\n",
        "it changes its argument",
    ),
)
