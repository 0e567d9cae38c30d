"""JAX: `optax`'s transformations, compiled."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tightgrad_lab.bench.frameworks.bits import to_numpy, to_torch
from tightgrad_lab.bench.frameworks.framework import NAMES, Framework, Operation
from tightgrad_lab.bench.frameworks.methods import AGC_EPS


def framework() -> Framework:
    """This process's JAX and optax."""
    return Framework(
        NAMES["optax"],
        f"{jax.__version__}/{optax.__version__}",
        put=lambda tensors: [jnp.asarray(to_numpy(tensor)) for tensor in tensors],
        get=lambda results: [to_torch(result) for result in results],
        wait=jax.block_until_ready,
        operations={
            "norm": Operation(
                "optax.tree.norm",
                _compiled(lambda grads, weights, bound: [optax.tree.norm(grads)]),
                "squares beyond float32; p other than 1, 2, inf; sparse gradients",
            ),
            "global_norm": Operation(
                "optax.clip_by_global_norm",
                _compiled(
                    lambda grads, weights, bound: [
                        *_update(optax.clip_by_global_norm(bound), grads, weights),
                        optax.tree.norm(grads),
                    ]
                ),
                "p other than 2; tell the norm; skip a step that is not finite; squares beyond float32",
            ),
            "value": Operation(
                "optax.clip",
                _compiled(lambda grads, weights, bound: _update(optax.clip(bound), grads, weights)),
                "sparse gradients",
            ),
            "block_rms": Operation(
                "optax.clip_by_block_rms",
                _compiled(lambda grads, weights, bound: _update(optax.clip_by_block_rms(bound), grads, weights)),
                "squares beyond float32",
            ),
            "agc": Operation(
                "optax.adaptive_grad_clip",
                _compiled(
                    lambda grads, weights, bound: _update(optax.adaptive_grad_clip(bound, eps=AGC_EPS), grads, weights)
                ),
                "leave out parameters by name (needs optax.masked); squares beyond float32",
            ),
        },
    )


def _update(transformation: Any, grads: Any, weights: Any) -> Sequence[Any]:
    updates, _ = transformation.update(grads, transformation.init(weights), weights)
    return list(updates)


def _compiled(run: Callable[[Any, Any, Any], Sequence[Any]]) -> Callable[[Any, Any, float], Sequence[Any]]:
    compiled: Callable[[Any, Any, float], Sequence[Any]] = jax.jit(run)
    return compiled
