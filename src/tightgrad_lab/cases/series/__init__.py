"""Time series forecasting: hourly PM2.5 in Beijing, 2010 to 2014 (Liang et al. 2015), 24 or 96 hours ahead."""

from tightgrad_lab.cases.series.case import FULL as FULL
from tightgrad_lab.cases.series.case import VARIANTS as VARIANTS
