"""Translation: English to French, sentence pairs of Tatoeba, 13,000 or, in full, 178,000."""

from tightgrad_lab.cases.translation.case import FULL as FULL
from tightgrad_lab.cases.translation.case import VARIANTS as VARIANTS
