"""The same clipping in TightGrad, PyTorch, TensorFlow and JAX/optax, on the same random trees of gradients."""

from tightgrad_lab.bench.frameworks.compare import compare_frameworks as compare_frameworks
from tightgrad_lab.bench.frameworks.compare import installed_frameworks as installed_frameworks
from tightgrad_lab.bench.frameworks.compare import missing_frameworks as missing_frameworks
from tightgrad_lab.bench.frameworks.framework import Framework as Framework
