def answer(true, noise, micro_batches, bound, rate, distance, processes, factor):
    return {
        "one": ...,
        "many": ...,
        "factor_one": ...,
        "factor_many": ...,
        "steps": ...,
        "local": ...,
        "traffic": ...,
    }
