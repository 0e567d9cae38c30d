"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("after(beta1, beta2, -x)", "after(beta1, beta2, x)", "the outlier is -x"),
    Wrong("gradient**2", "abs(gradient)", "the mean of the squared gradients"),
    Wrong("step = mean / math.sqrt(square)", "step = mean / square", "square root of q"),
    Wrong("    backwards = 0\n", "    backwards = -(mean < 0)\n", "own step, t = 0, counts"),
    Wrong("-min(x, bound)", "-bound", "smaller than the bound is not clipped"),
    Wrong("beta1 / (1 - beta1)\n", "1 / (1 - beta1)\n", "exceeds beta1"),
)
