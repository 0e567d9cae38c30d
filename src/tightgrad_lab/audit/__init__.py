"""`tightgrad audit`: runs a user's own training step beside a float64 reference on one process, and names what differs.

specification -> scenario -> watch (in each rank: the user's loop, gradients seen at optimizer.step) -> reference
(gradients of every micro-batch at the same weights) -> candidates (what known mistakes would give) -> diagnosis.
"""

from tightgrad_lab.audit.diagnosis import Finding as Finding
from tightgrad_lab.audit.run import Audit as Audit
from tightgrad_lab.audit.run import audit as audit
