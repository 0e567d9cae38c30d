"""Time series forecasting: hourly PM2.5 in Beijing, 2010 to 2014 (Liang et al. 2015), 24 or 96 hours ahead.

In full: a training window in every hour, and ETTh1.
"""

from collections.abc import Mapping

from tightgrad_lab.cases.series import case, ett
from tightgrad_lab.training.case import AnyCase

VARIANTS: Mapping[str, AnyCase] = {**case.VARIANTS, **ett.VARIANTS, **case.WHOLE}
FULL = (*ett.VARIANTS, *case.WHOLE)
