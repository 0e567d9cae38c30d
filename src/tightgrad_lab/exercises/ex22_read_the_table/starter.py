def answer(plain, combined, t, sd, gap, parameters, steps, processes, vocabulary, width, tokens):
    return {
        "difference": ...,
        "halfwidth": ...,
        "seen": ...,
        "seeds": ...,
        "sent": ...,
        "table": ...,
        "rows": ...,
    }
