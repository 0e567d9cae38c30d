"""Translation: English to French, sentence pairs of Tatoeba."""

from tightgrad_lab.cases.translation.case import FULL as FULL
from tightgrad_lab.cases.translation.case import VARIANTS as VARIANTS
