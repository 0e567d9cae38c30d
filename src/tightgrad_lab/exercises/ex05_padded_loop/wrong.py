"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

SHARE = "loss * int((labels != -100).sum()) / items"
WRONG = (
    Wrong(SHARE, "loss / micro_batches", "dividing by K weights micro-batches"),
    Wrong(SHARE, "loss * labels.numel() / sum(len(y) for _, y in window)", "padding is counted"),
    Wrong("        optimizer.zero_grad()\n", "", "earlier windows stay in the sum"),
    Wrong(
        "        for tokens, labels in window:\n",
        "        for tokens, labels in window:\n            optimizer.zero_grad()\n",
        "only the last one is left",
    ),
    Wrong(
        "        optimizer.step()\n",
        "        if len(window) == micro_batches:\n            optimizer.step()\n",
        "it is not full",
    ),
    Wrong(SHARE, "loss * int((labels != -100).sum()) / sum(int((y != -100).sum()) for _, y in batches)", "whole epoch"),
    Wrong(SHARE, SHARE + " / len(window)", "you divide twice"),
    Wrong(SHARE, "loss", "added and not divided"),
    Wrong("        optimizer.step()\n", "            optimizer.step()\n", "every micro-batch makes a step"),
    Wrong("items = sum(int((labels != -100).sum())", "items = sum(int((labels > 0).sum())", "the token 0 is a label"),
)
