"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("bandwidth = gbit * 1e9 / 8", "bandwidth = gbit * 1e9", "bits are taken for bytes"),
    Wrong("2 * (processes - 1) / processes", "(processes - 1) / processes", "the factor 2 is missing"),
    Wrong("(processes - 1) / factor if gathered else ring / factor", "ring / factor", "not added on the way"),
    Wrong("(processes - 1) / factor", "processes / factor", "its own message"),
    Wrong("bandwidth + coding", "bandwidth", "encoding and decoding take time"),
    Wrong("max(0.0, (ring - share) * nbytes / coding)", "(ring - share) * nbytes / coding", "no negative speed"),
    Wrong("* 8 / 1e9", "/ 1e9", "break_even: a link of 1 Gbit/s"),
    Wrong("gbit * 1e9 / 8", "gbit * 1e9 * 8", "you multiply by 8"),
    Wrong("gbit * 1e9 / 8", "gbit * 2**30 / 8", "a gigabit is 10^9 bits"),
    Wrong("bandwidth + coding", "bandwidth + 2 * coding", "add it once"),
)
