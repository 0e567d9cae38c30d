"""What has to hold, and is looked at: model, optimizers, loss, who owns gradients, what attach is given."""
