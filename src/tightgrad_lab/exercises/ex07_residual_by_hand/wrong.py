"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

KEEP = "residual = [v - m for v, m in zip(wanted, message)]"
WRONG = (
    Wrong("wanted = [g + e for g, e in zip(gradient, residual)]", "wanted = gradient", "there is no feedback"),
    Wrong(KEEP, "residual = [g - m for g, m in zip(gradient, message)]", "what was owed before is lost"),
    Wrong(KEEP, "residual = wanted", "will be sent again"),
    Wrong("key=lambda i: -abs(vector[i])", "key=lambda i: -vector[i]", "choose by magnitude"),
    Wrong("(8 * k)", "(4 * k)", "positions cost 4 bytes each"),
    Wrong(KEEP, "residual = [m - v for v, m in zip(wanted, message)]", "the residual has the wrong sign"),
    Wrong("4 * len(residual) / (8 * k)", "8 * k / (4 * len(residual))", "upside down"),
    Wrong("*(top_k(gradient, k) for gradient in gradients)", "*sent", "sent with feedback"),
)
