"""Twenty-four exercises, three for each chapter of the course, that grade themselves.

Each lies in a folder of its own: the task in two languages, the file that a student starts from, the grader, a
solution, and wrong answers that people give. `check` runs a student's file in a process of its own, `start` writes the
folder of a student or of a teacher.
"""

from tightgrad_lab.exercises.catalogue import COUNT, Sheet, sheet, sheets
from tightgrad_lab.exercises.check import Verdict, check
from tightgrad_lab.exercises.start import start

__all__ = ["COUNT", "Sheet", "Verdict", "check", "sheet", "sheets", "start"]
