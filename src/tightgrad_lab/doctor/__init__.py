"""`tightgrad doctor`: reads the records of a run and names what is wrong with it, with evidence and a cure.

read (JSONL, TensorBoard) -> rules (one file each; pure functions of a run) -> findings.
"""

from tightgrad_lab.doctor.finding import Finding as Finding
from tightgrad_lab.doctor.history import History as History
from tightgrad_lab.doctor.read import read_history as read_history
from tightgrad_lab.doctor.rules import examine as examine
from tightgrad_lab.doctor.rules import notes as notes
