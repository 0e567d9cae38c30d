"""What every clipper must do with any gradients."""

from conformance.cases import CLIPPERS
from tightgrad.testing import ClipperTests


class TestClippers(ClipperTests):
    clippers = CLIPPERS
