"""What a step will take under each plan: this link, this machine, this model; and which plan to take."""
