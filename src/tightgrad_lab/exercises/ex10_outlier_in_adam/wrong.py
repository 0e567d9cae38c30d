"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("after(beta1, beta2, -x)", "after(beta1, beta2, x)", "the outlier is -x"),
    Wrong("gradient**2", "abs(gradient)", "the mean of the squared gradients"),
    Wrong("step = mean / math.sqrt(square)", "step = mean / square", "square root of q"),
    Wrong("    backwards = 0\n", "    backwards = -(mean < 0)\n", "own step, t = 0, counts"),
    Wrong("-min(x, bound)", "-bound", "smaller than the bound is not clipped"),
    Wrong("beta1 / (1 - beta1)\n", "1 / (1 - beta1)\n", "exceeds beta1"),
    Wrong("beta1 + (1 - beta1) * gradient,", "(1 - beta1) * gradient,", "the old mean is left out"),
    Wrong("beta2 + (1 - beta2) * gradient**2", "(1 - beta2) * gradient**2", "the old mean of the squares"),
    Wrong("small / math.sqrt(small_square)", "small / math.sqrt(square)", "enters q as well as u"),
    Wrong("small / math.sqrt(small_square)", "mean / math.sqrt(small_square)", "enters u as well as q"),
    Wrong("        running = beta1 * running + (1 - beta1)", "        running = 1", "only the outlier's own step"),
)
