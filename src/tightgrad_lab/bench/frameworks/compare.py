"""Runs every method of every installed framework, and TightGrad's, on the same trees; says how far apart they are."""

import importlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tightgrad_lab.bench.frameworks.framework import Framework, Operation
from tightgrad_lab.bench.frameworks.methods import METHODS, Method
from tightgrad_lab.bench.frameworks.trees import GradientTree, random_tree

FILES = {"torch": "pytorch", "tensorflow": "tensorflow_ops", "optax": "jax_optax"}
# Squares of these, and sums of a million of them, are float32 numbers with all their digits.
SCALES = (1e-14, 1e-7, 1.0, 1e7, 1e14)
EXTREMES = (1e-30, 1e-22, 1e22, 1e30)
BROKEN = 1e-3


def installed_frameworks() -> list[str]:
    """Those of "torch", "tensorflow" and "optax" that can be imported here."""
    return [name for name in FILES if find_spec(name) is not None]


def missing_frameworks() -> list[str]:
    """Those that cannot."""
    return [name for name in FILES if find_spec(name) is None]


def compare_frameworks(
    seed: int = 0,
    *,
    frameworks: Sequence[str] | None = None,
    num_trees: int = 10,
    repeats: int = 7,
    progress: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measure.

    Args:
        seed: of trees and their values.
        frameworks: of `installed_frameworks`; None takes all of these.
        num_trees: random trees for each operation; scales take turns, every third has a tensor of a million numbers.
        repeats: timed runs; their median counts.
        progress: called with a line before each operation.

    Returns:
        One row for each framework and operation, in JSON values: `framework`, `version`, `operation`, `method` (a
        key of METHODS), `counterpart` (TightGrad's name);
        `largest_relative_difference` between the two, of any clipped number or norm, at scales of 1e-14 to 1e14 (None
        if one is not finite); `tightgrad_error` and `framework_error`, the same against float64;
        `smallest_scale` and `largest_scale` at which the framework is still right to 0.1 %, out of 1e-30 to 1e30, and
        `tightgrad_smallest_scale`, `tightgrad_largest_scale`;
        `bfloat16_error` and `tightgrad_bfloat16_error`, of the norm of all results on bfloat16 gradients;
        `seconds` and `tightgrad_seconds` of one call on a million numbers and a dozen smaller tensors;
        `cannot`, what the framework's function cannot do.
    """
    rows = []
    for name in installed_frameworks() if frameworks is None else frameworks:
        framework = importlib.import_module(f"tightgrad_lab.bench.frameworks.{FILES[name]}").framework()
        for identifier, operation in framework.operations.items():
            progress(f"{framework.name} {operation.name}")
            rows.append(_row(framework, operation, identifier, seed, num_trees, repeats))
    return rows


def _row(
    framework: Framework, operation: Operation, identifier: str, seed: int, num_trees: int, repeats: int
) -> dict[str, Any]:
    method = METHODS[identifier]
    trees = [random_tree(seed + index, SCALES[index % len(SCALES)], large=index % 3 == 0) for index in range(num_trees)]
    results = [_results(framework, operation, method, tree) for tree in trees]
    in_bfloat16 = _results(framework, operation, method, random_tree(seed, 1.0, large=True).to(torch.bfloat16))
    scales = {
        scale: _results(framework, operation, method, random_tree(seed, scale)) for scale in sorted(SCALES + EXTREMES)
    }
    seconds, our_seconds = _seconds(framework, operation, method, random_tree(seed, 1.0, large=True), repeats)
    return {
        "framework": framework.name,
        "version": framework.version,
        "operation": operation.name,
        "method": identifier,
        "counterpart": method.name,
        "largest_relative_difference": _finite(max(_difference(ours, theirs) for ours, theirs, _ in results)),
        "tightgrad_error": _finite(max(_difference(ours, exact) for ours, _, exact in results)),
        "framework_error": _finite(max(_difference(theirs, exact) for _, theirs, exact in results)),
        **_range("", {scale: _difference(theirs, exact) for scale, (_, theirs, exact) in scales.items()}),
        **_range("tightgrad_", {scale: _difference(ours, exact) for scale, (ours, _, exact) in scales.items()}),
        "bfloat16_error": _norm_error(in_bfloat16[1], in_bfloat16[2]),
        "tightgrad_bfloat16_error": _norm_error(in_bfloat16[0], in_bfloat16[2]),
        "seconds": seconds,
        "tightgrad_seconds": our_seconds,
        "cannot": operation.cannot,
    }


def _results(
    framework: Framework, operation: Operation, method: Method, tree: GradientTree
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Ours, theirs, and float64's; the bound is a number that float32 and bfloat16 hold."""
    bound = float(torch.tensor(method.bound(tree.rms, tree.numel)).bfloat16())
    exact = method.exact(tree.grads, tree.weights, bound)
    theirs = framework.get(operation.run(framework.put(tree.grads), framework.put(tree.weights), bound))
    return method.ours(tree.copy(), tree.weights, bound), theirs, exact


def _difference(have: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest |have - want| / |want| of any number; 0 / 0 is 0, and what is not finite is inf."""
    largest = 0.0
    for one, other in zip(have, want, strict=True):
        distance = (one.double() - other.double()).abs()
        relative = torch.where(distance == 0, 0.0, distance / other.double().abs())
        largest = max(largest, float(relative.nan_to_num(nan=math.inf, posinf=math.inf).max()))
    return largest


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _norm_error(have: Sequence[Tensor], want: Sequence[Tensor]) -> float | None:
    """How far the norm over all tensors is off, relatively; None if it is not finite."""
    norms = [math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors)) for tensors in (have, want)]
    return _finite(abs(norms[0] / norms[1] - 1))


def _range(prefix: str, errors: dict[float, float]) -> dict[str, float]:
    """The scales around 1 that are right without a gap."""
    below = [scale for scale in sorted(errors, reverse=True) if scale <= 1]
    above = [scale for scale in sorted(errors) if scale >= 1]
    ends = []
    for scales in (below, above):
        end = 1.0
        for scale in scales:
            if errors[scale] > BROKEN:
                break
            end = scale
        ends.append(end)
    return {f"{prefix}smallest_scale": ends[0], f"{prefix}largest_scale": ends[1]}


def _seconds(
    framework: Framework, operation: Operation, method: Method, tree: GradientTree, repeats: int
) -> tuple[float, float]:
    """Medians, theirs and ours in turn; a copy of the gradients is not counted."""
    bound = method.bound(tree.rms, tree.numel)
    weights = framework.put(tree.weights)
    theirs, ours = [], []
    for _ in range(repeats + 1):
        grads = framework.put(tree.grads)
        start = time.perf_counter()
        framework.wait(operation.run(grads, weights, bound))
        theirs.append(time.perf_counter() - start)
        copies = tree.copy()
        start = time.perf_counter()
        method.ours(copies, tree.weights, bound)
        ours.append(time.perf_counter() - start)
    return statistics.median(theirs[1:]), statistics.median(ours[1:])
