def forecast(parameters, processes, gbit, factor, coding, gathered):
    nbytes = 4 * parameters
    bandwidth = gbit * 1e9 / 8
    ring = 2 * (processes - 1) / processes
    share = (processes - 1) / factor if gathered else ring / factor
    dense = ring * nbytes / bandwidth
    packed = share * nbytes / bandwidth + coding
    break_even = max(0.0, (ring - share) * nbytes / coding) * 8 / 1e9
    return {"dense": dense, "packed": packed, "pays": packed < dense, "break_even": break_even}
