"""`tightgrad audit --run`: runs a training script as it is, on local CPU ranks, and says what each target counts.

settings -> launch (parent) -> child (in each rank: imports, losses, surroundings and recorder are put around the
script) -> records -> windows -> weights, gradients, clipping and routine (the checks) -> judge -> run.
"""

from tightgrad_lab.audit.script.run import ScriptAudit as ScriptAudit
from tightgrad_lab.audit.script.run import audit_script as audit_script
from tightgrad_lab.audit.script.settings import Settings as Settings
