"""Complex parameters: accumulated, clipped and summed over ranks, but not compressed."""

from collections.abc import Mapping

from torch import nn

from tightgrad.core.errors import UnsupportedError
from tightgrad.plan.plan import ResolvedCompress


def check_no_complex(compress: ResolvedCompress, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise `UnsupportedError` if something would compress the gradient of a complex parameter.

    Codecs work on real numbers, of which a complex one has two: each would drop the imaginary parts.

    Args:
        compress: of the plan.
        parameters: by name, the same on every rank.
    """
    if compress.reducer.leaves_nothing:
        return
    found = [(name, parameter.dtype) for name, parameter in parameters.items() if parameter.is_complex()]
    if found:
        name, dtype = found[0]
        method = compress.codec.card.id if compress.codec is not None else compress.reducer.card.id
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UnsupportedError(
            f"{name!r}{more} is {dtype}, and {method} compresses real numbers only. Hold it as pairs, "
            f"nn.Parameter(torch.view_as_real(...)), and take torch.view_as_complex({name.rpartition('.')[2]}) in "
            "forward; or send uncompressed gradients, compress=tg.Compress() or none."
        )
