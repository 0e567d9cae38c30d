"""The plans that TightGrad recommends, from the mildest to the strongest compression."""

import tightgrad as tg
from tightgrad.codecs import Cast, IntBlock, Sign, SizeAdaptive, TopK
from tightgrad.feedback import ErrorFeedback
from tightgrad.reducers import PowerSGD

RECOMMENDED: dict[str, tg.Plan] = {
    "cast bfloat16": tg.Plan(compress=tg.Compress(Cast("bfloat16"))),
    "8-bit blocks": tg.Plan(compress=tg.Compress(IntBlock(8), feedback=ErrorFeedback())),
    "4-bit blocks": tg.Plan(compress=tg.Compress(IntBlock(4), feedback=ErrorFeedback())),
    "sign": tg.Plan(compress=tg.Compress(Sign(), feedback=ErrorFeedback())),
    "powersgd rank 4": tg.Plan(compress=tg.Compress(reducer=PowerSGD(4), feedback=ErrorFeedback())),
    "powersgd rank 8, 8-bit": tg.Plan(
        compress=tg.Compress(SizeAdaptive(IntBlock(8), threshold=1024), PowerSGD(8), ErrorFeedback())
    ),
    "topk 1 %": tg.Plan(compress=tg.Compress(TopK(0.01, values=IntBlock(8)), feedback=ErrorFeedback())),
    "topk 0.1 %": tg.Plan(compress=tg.Compress(TopK(0.001, values=IntBlock(4)), feedback=ErrorFeedback())),
}

LOCAL: dict[str, tg.DiLoCo] = {
    "diloco 20, 4-bit blocks": tg.DiLoCo(
        every=20, plan=tg.Plan(compress=tg.Compress(IntBlock(4), feedback=ErrorFeedback()))
    ),
}
"""Local updates, for links too slow for a message a step: another algorithm, of which the bench says the cost only."""
