"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("    @property\n    def granularity(self):\n        return self.block\n\n", "", "the granularity is 1"),
    Wrong("rows.abs().amax(1) / 127", "rows.abs().max().expand(count) / 127", "one scale serves the whole tensor"),
    Wrong(".round().clamp", ".clamp", "cuts off towards zero"),
    Wrong(
        '        if self.block < 1:\n            raise ValueError(f"block is {self.block}; it must be at least 1")\n',
        "        pass\n",
        "a block of 0 elements is accepted",
    ),
    Wrong("codes, scales = checked_tensors(self, payload)", "codes, scales = payload.tensors", "the conformance check"),
    Wrong(
        "return values.to(payload.spec.device, payload.spec.dtype)", "return values", "convert to `payload.spec.dtype`"
    ),
    Wrong("@dataclass(frozen=True)", "@dataclass", "frozen=True"),
    Wrong(".to(payload.spec.device, payload.spec.dtype)", ".double()", "the conformance check"),
    Wrong("from dataclasses", "from tightgrad.codecs import IntBlock\nfrom dataclasses", "does the exercise for you"),
)
