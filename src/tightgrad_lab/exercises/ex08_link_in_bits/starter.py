def forecast(parameters, processes, gbit, factor, coding, gathered):
    nbytes = 4 * parameters
    bandwidth = gbit * 1e9
    ring = (processes - 1) / processes
    dense = ring * nbytes / bandwidth
    packed = ring * nbytes / factor / bandwidth + coding
    break_even = (1 - 1 / factor) * ring * nbytes / coding / 1e9
    return {"dense": dense, "packed": packed, "pays": packed < dense, "break_even": break_even}
