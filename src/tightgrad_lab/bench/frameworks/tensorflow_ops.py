"""TensorFlow: `tf.clip_by_*`, in a `tf.function`."""

import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from tightgrad_lab.bench.frameworks.bits import to_numpy, to_torch
from tightgrad_lab.bench.frameworks.framework import NAMES, Framework, Operation


def framework() -> Framework:
    """This process's TensorFlow."""
    return Framework(
        NAMES["tensorflow"],
        tf.__version__,
        put=lambda tensors: [tf.constant(to_numpy(tensor)) for tensor in tensors],
        get=lambda results: [to_torch(result.numpy()) for result in results],
        wait=lambda results: [result.numpy() for result in results[-1:]],
        operations={
            "norm": Operation(
                "tf.linalg.global_norm",
                _compiled(lambda grads, weights, bound: [tf.linalg.global_norm(grads)]),
                "squares beyond float32; p other than 2",
            ),
            "global_norm": Operation(
                "tf.clip_by_global_norm",
                _compiled(_global_norm),
                "p other than 2; skip a step that is not finite (all becomes NaN); squares beyond float32",
            ),
            "per_tensor_norm": Operation(
                "tf.clip_by_norm",
                _compiled(lambda grads, weights, bound: [tf.clip_by_norm(grad, bound) for grad in grads]),
                "tell the norm; squares beyond float32",
            ),
            "value": Operation(
                "tf.clip_by_value",
                _compiled(lambda grads, weights, bound: [tf.clip_by_value(grad, -bound, bound) for grad in grads]),
                "one call for all gradients",
            ),
        },
    )


def _global_norm(grads: Any, weights: Any, bound: Any) -> Sequence[Any]:
    clipped, norm = tf.clip_by_global_norm(grads, bound)
    return [*clipped, norm]


def _compiled(run: Callable[[Any, Any, Any], Sequence[Any]]) -> Callable[[Any, Any, float], Sequence[Any]]:
    compiled = tf.function(run)

    def call(grads: Any, weights: Any, bound: float) -> Sequence[Any]:
        results: Sequence[Any] = compiled(grads, weights, tf.constant(bound, grads[0].dtype))
        return results

    return call
