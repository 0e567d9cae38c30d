"""Wrong answers that people give."""

from tightgrad_lab.exercises.catalogue import Wrong

WRONG = (
    Wrong("matrix = gradient + residual", "matrix = gradient", "there is no feedback"),
    Wrong("matrix - delivered", "gradient - delivered", "what was owed before is lost"),
    Wrong("comm.all_reduce_(matrix @ q) / comm.world_size", "matrix @ q", "P is not averaged"),
    Wrong(
        "comm.all_reduce_(matrix.T @ p) / comm.world_size",
        "comm.all_reduce_(matrix.T @ p)",
        "divide Q by the number of processes",
    ),
    Wrong("    p = torch.linalg.qr(p).Q\n", "", "not made orthonormal"),
    Wrong("torch.linalg.qr(p).Q", "p / p.norm(dim=0)", "but are not orthogonal"),
    Wrong(
        "comm.all_reduce_(matrix @ q) / comm.world_size",
        "comm.all_reduce_(torch.linalg.qr(matrix @ q).Q) / comm.world_size",
        "orthonormal before the average",
    ),
    Wrong(
        "p = comm.all_reduce_(matrix @ q) / comm.world_size",
        "p = comm.all_reduce_(matrix.clone()) @ q / comm.world_size",
        "the whole matrix is exchanged",
    ),
    Wrong("matrix - delivered", "delivered - matrix", "the residual has the wrong sign"),
    Wrong("matrix.T @ p", "gradient.T @ p", "Q is formed from the gradient alone"),
    Wrong("    delivered =", "    q = torch.linalg.qr(q).Q\n    delivered =", "Q is made orthonormal"),
)
