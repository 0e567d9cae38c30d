"""Text classification: which of 12 kinds of thing a WordNet gloss defines.

In full: what a question asks for (TREC), and the polarity of film reviews (IMDB).
"""

from tightgrad_lab.cases.text.case import FULL as FULL
from tightgrad_lab.cases.text.case import VARIANTS as VARIANTS
