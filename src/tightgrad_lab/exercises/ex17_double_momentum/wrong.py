"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("        velocity[chosen] = 0\n", "", "nothing is masked"),
    Wrong(
        "        weights = weights - rate * message\n",
        "        late = momentum * (late if sent.any() else 0) + message\n        weights = weights - rate * late\n",
        "momentum acts a second time",
    ),
    Wrong("velocity = momentum * velocity + gradient", "velocity = gradient", "collects the momentum"),
    Wrong("velocity + gradient", "velocity + (1 - momentum) * gradient", "enters the momentum whole"),
    Wrong("residual = wanted - message", "residual = wanted", "stays in the residual"),
    Wrong("wanted = velocity + residual", "wanted = velocity.clone()", "there is no feedback"),
    Wrong("wanted.abs().topk(k)", "wanted.topk(k)", "choose by magnitude"),
    Wrong(
        "        wanted = velocity + residual",
        "        velocity = velocity + residual\n        wanted = velocity",
        "fed into the momentum",
    ),
    Wrong("rate * message", "rate * velocity", "by the momentum that remains"),
    Wrong("rate * message", "rate * wanted", "by all of v"),
    Wrong("weights - rate", "weights + rate", "this climbs"),
)
