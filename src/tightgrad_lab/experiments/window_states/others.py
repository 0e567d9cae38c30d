"""The tagger and its windows in JAX/optax and in Keras: same weights, same tokens, same mean loss."""

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightgrad_lab.experiments.window_states.windows import (
    FEATURES,
    IGNORED,
    LENGTH,
    MICRO_BATCHES,
    VOCABULARY,
    Batch,
    Tagger,
    Taken,
)

LARGE_RATE = 1024.0  # so large that the weights' own digits are lost in the step, not the gradient's


def _weights() -> list[Any]:
    return [parameter.detach().numpy() for parameter in Tagger().parameters()]


def _flat(arrays: Sequence[Any]) -> Tensor:
    return torch.cat([torch.from_numpy(np.array(array, dtype=np.float32)).flatten() for array in arrays])


def with_optax(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """`optax.MultiSteps` around the identity: its update is the gradient that an optimizer would have been given."""
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    jnp = jax.numpy

    def loss(params: Any, input_ids: Any, labels: Any) -> Any:
        embed, weight, bias = params
        scores = embed[input_ids] @ weight.T + bias
        counts = labels != IGNORED
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.where(counts, labels, 0))
        return (losses * counts).sum() / counts.sum()

    params = [jnp.asarray(array) for array in _weights()]
    optimizer = optax.MultiSteps(optax.identity(), every_k_schedule=MICRO_BATCHES)
    state = optimizer.init(params)
    gradient, update = jax.jit(jax.grad(loss)), jax.jit(optimizer.update)
    taken: list[Taken] = []
    seen = 0
    for _ in range(epochs):
        for input_ids, labels in batches:
            seen += 1
            updates, state = update(gradient(params, input_ids.numpy(), labels.numpy()), state, params)
            if bool(optimizer.has_updated(state)):
                taken.append((seen, _flat(updates)))
    return taken


def with_keras(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """Keras' `gradient_accumulation_steps` under `fit`: the step is read off the weights, which are then put back."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    keras = importlib.import_module("keras")
    embed, weight, bias = _weights()
    start = [embed, weight.T, bias]
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            keras.layers.Embedding(VOCABULARY, FEATURES),
            keras.layers.Dense(VOCABULARY),
        ]
    )
    model.set_weights(start)
    model.compile(
        keras.optimizers.SGD(LARGE_RATE, gradient_accumulation_steps=MICRO_BATCHES),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED),
    )
    taken: list[Taken] = []

    class Keep(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        seen = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen += 1
            moved = [(a - b) / LARGE_RATE for a, b in zip(start, self.model.get_weights(), strict=True)]
            if any(array.any() for array in moved):
                taken.append((self.seen, _flat([moved[0], moved[1].T, moved[2]])))
                self.model.set_weights(start)

    inputs, labels = (torch.cat(tensors).int().numpy() for tensors in zip(*batches, strict=True))
    model.fit(inputs, labels, batch_size=1, epochs=epochs, shuffle=False, verbose=0, callbacks=[Keep()])
    return taken
