"""Text classification: which of 12 kinds of thing a WordNet gloss defines; or the polarity of film reviews, in full."""

from tightgrad_lab.cases.text.case import FULL as FULL
from tightgrad_lab.cases.text.case import VARIANTS as VARIANTS
