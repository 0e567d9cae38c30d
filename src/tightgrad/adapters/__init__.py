"""One adapter per wrapper: the only code that touches it."""

from tightgrad.adapters.detect import make_adapter as make_adapter
