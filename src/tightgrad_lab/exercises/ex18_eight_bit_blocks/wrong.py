"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("rows.abs().amax(1) / 127", "rows.abs().max().expand(count) / 127", "one scale serves the whole vector"),
    Wrong("rows.abs().amax(1) / 127", "rows.amax(1) / 127", "not the largest magnitude"),
    Wrong(".amax(1) / 127", ".amax(1) / 128", "divide by 127"),
    Wrong("codes.float() * scales", "codes.double() * scales", "must return a float32 vector"),
    Wrong(".round().to", ".to", "cuts off towards zero"),
    Wrong("to(torch.int8)", "to(torch.int32)", "4 bytes each"),
    Wrong("count = -(-len(vector) // block)", "count = len(vector) // block", "raises RuntimeError"),
    Wrong(
        "    count = -(-len(vector) // block)\n",
        "    vector *= 1.0001\n    count = -(-len(vector) // block)\n",
        "it changes its argument",
    ),
    Wrong("torch.where(scales == 0, 1.0, scales)", "scales + 1e-8", "a constant is added to the scales"),
    Wrong("torch.where(scales == 0, 1.0, scales)", "scales.clamp(min=1e-8)", "a constant is added to the scales"),
    Wrong(".reshape(-1)[: len(vector)]", ".reshape(-1)", "cut them to the length"),
    Wrong(".to(torch.int8)", ".to(torch.uint8)", "uint8 has no negative"),
    Wrong("return codes, scales", "return codes, 1 / divisors", "the inverses of the scales"),
    Wrong("return codes, scales", "return codes, scales * 127", "the largest magnitude; the scale"),
    Wrong("return codes, scales", "return codes, scales.half()", "the scales are fp16"),
)
