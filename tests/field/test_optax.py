"""optax (JAX): a window of ragged micro-batches, and what it does with a NaN. `pip install '.[peers]'` brings it."""

import numpy
import pytest
import torch

import tightgrad as tg

TOKENS = (16, 2, 16, 1)


def token_gradients() -> list[numpy.ndarray]:
    """The gradient of the loss of each token with respect to one weight vector, by micro-batch."""
    random = numpy.random.default_rng(0)
    return [random.normal(size=(tokens, 8)).astype(numpy.float32) for tokens in TOKENS]


def error(found: numpy.ndarray, exact: numpy.ndarray) -> float:
    return float(numpy.linalg.norm(found - exact) / numpy.linalg.norm(exact))


def test_a13_ragged_window(field_row) -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    batches = token_gradients()
    exact = numpy.concatenate(batches).astype(numpy.float64).mean(0)

    rule = optax.MultiSteps(optax.sgd(1.0), len(batches))
    weights = jax.numpy.zeros(8)
    state = rule.init(weights)
    for batch in batches:
        update, state = rule.update(jax.numpy.asarray(batch.mean(0)), state, weights)
    peer = error(-numpy.asarray(update), exact)

    model = torch.nn.Linear(8, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    plan = tg.Plan(accumulate=tg.Accumulate(len(batches)))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=1.0), plan, weight=len)
    for window in pipe.windows(torch.from_numpy(batch) for batch in batches):
        for batch in window:
            pipe.backward(model(batch).mean())
        pipe.step()
    ours = error(-model.weight.detach().numpy()[0], exact)

    assert ours < 1e-6
    field_row("A13 ragged tokens [16, 2, 16, 1]", "optax", f"error {peer:.0%}", f"{ours:.0%}", peer_is_wrong=peer > 0.5)


def test_a_nan_is_skipped_until_the_set_number_in_a_row() -> None:
    """As the page of comparisons says."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    rule = optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=2)
    state, updates = rule.init(jax.numpy.zeros(2)), []
    for _ in range(3):
        update, state = rule.update(jax.numpy.full(2, jax.numpy.nan), state)
        updates.append(numpy.asarray(update))
    assert not updates[0].any()
    assert not updates[1].any()
    assert numpy.isnan(updates[2]).all()
