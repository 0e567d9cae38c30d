"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

CHECK = """        if not torch.isfinite(gradient).all():
            raise ValueError(f"the gradient of {name} is not finite")
"""
WRONG = (
    Wrong("self.residuals[name] = residual", "pass", "there is no feedback"),
    Wrong("self.residuals[name] = residual", "self.residuals[name] = wanted", "is sent again"),
    Wrong(
        "        residual[positions] = 0\n        self.residuals[name] = residual\n",
        "        residual = flat.clone()\n        residual[positions] = 0\n        self.residuals[name] = residual\n",
        "what was owed before is lost",
    ),
    Wrong(CHECK, "", "a gradient that is not finite is let in"),
    Wrong("wanted.abs().topk(k)", "wanted.topk(k)", "choose by magnitude"),
    Wrong("        wanted = flat +", "        flat += 1e-3 * flat\n        wanted = flat +", "it changes its argument"),
    Wrong("max(1, int(self.density * flat.numel()))", "int(self.density * flat.numel())", "send at least one element"),
    Wrong("int(self.density * flat.numel())", "round(self.density * flat.numel())", "rounded to the nearest integer"),
    Wrong("wanted.abs().topk(k)", "flat.abs().topk(k)", "choose by the gradient alone"),
    Wrong("values = wanted[positions]", "values = flat[positions]", "you send the gradient's values"),
    Wrong("values = wanted[positions]", "values = wanted[positions].abs()", "lost their signs"),
    Wrong("= residual\n", "= -residual\n", "the residual has the wrong sign"),
)
