def answer(rate, curvature, batch, new_batch, beta2):
    return {
        "linear": ...,
        "root": ...,
        "limit": ...,
        "small": ...,
        "big": ...,
        "beta2": ...,
        "half_life": ...,
    }
