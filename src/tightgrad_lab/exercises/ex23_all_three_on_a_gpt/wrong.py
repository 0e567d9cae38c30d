"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

CLIP = "        wanted = gradient + residual\n"
GATHER = """        for places, sent in zip(comm.all_gather(chosen.int()), comm.all_gather(values)):
            delivered[places.long()] += sent.double()
"""
WRONG = (
    Wrong(
        "        comm.all_reduce_(items)\n", "        items *= comm.world_size\n", "your count covers this process only"
    ),
    Wrong(
        GATHER,
        "        delivered[chosen] = values.double()\n        comm.all_reduce_(delivered)\n",
        "sent whole by all_reduce_",
    ),
    Wrong("chosen.int()", "chosen", "int32 and float32"),
    Wrong(CLIP, "        gradient = gradient * min(1.0, max_norm / float(gradient.norm()))\n" + CLIP, "clipped twice"),
    Wrong("rate * min(1.0, max_norm / norms[-1]) * delivered", "rate * delivered", "nothing is clipped"),
    Wrong("min(1.0, max_norm / norms[-1])", "(max_norm / norms[-1])", "is lengthened"),
    Wrong("residual = wanted.clone()", "residual = gradient.clone()", "what was owed before is lost"),
    Wrong("residual[chosen] -= values.double()", "residual[chosen] = 0", "what float32 rounds off is lost"),
    Wrong(
        "residual[chosen] -= values.double()",
        "residual[chosen] -= values.double()\n        residual = residual.float()",
        "the residual is kept in float32",
    ),
    Wrong("float(items))", "float(items)).float()", "computes in float32 somewhere"),
    Wrong("    residual = 0\n", "    model.float()\n    residual = 0\n", "computes in float32 somewhere"),
    Wrong("torch.zeros_like(wanted)", "torch.zeros(len(wanted))", "computes in float32 somewhere"),
    Wrong(CLIP, "        wanted = gradient + 0 * residual\n", "there is no feedback"),
    Wrong(
        "        norms.append(float(delivered.norm()))",
        "        delivered /= comm.world_size\n        norms.append(float(delivered.norm()))",
        "the messages are averaged",
    ),
    Wrong("    return norms", "    return [min(one, max_norm) for one in norms]", "recorded after the clip"),
)
