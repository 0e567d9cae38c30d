"""Does the optimizer hold only what the pipeline sees? Asked at attach, before each window and at its step."""

from collections.abc import Mapping

import torch
from torch import nn

from tightgrad.core.errors import UsageError

MOST_NAMED = 3


def check_no_strangers(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    model_parameters: Mapping[str, nn.Parameter],
) -> None:
    """Raise `UsageError` if the optimizer holds a trainable tensor that is not among `parameters`.

    Args:
        optimizer: of the pipeline.
        parameters: that the pipeline knows, by name.
        model_parameters: all of the model's at attach, by name.
    """
    known = {id(parameter) for parameter in parameters.values()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [parameter for parameter in held if parameter.requires_grad and id(parameter) not in known]
    if not strangers:
        return
    names = {id(parameter): name for name, parameter in model_parameters.items()}
    late = [repr(names[id(parameter)]) for parameter in strangers if id(parameter) in names]
    if late:
        raise UsageError(
            f"attach() has left out {_shown(late)}, which were frozen or were not yet in the optimizer: their "
            "gradients would be neither summed over ranks nor clipped nor cleared. Unfreeze before attach() and give "
            "all parameters to the optimizer before it, or call attach() again between two windows."
        )
    raise UsageError(
        f"the optimizer holds {len(strangers)} parameter(s) that attach() did not see in the model (shapes "
        f"{_shown([str(tuple(parameter.shape)) for parameter in strangers])}): their gradients would be neither summed "
        "over ranks nor clipped nor cleared. If they are float32 copies of the model's parameters, pass an optimizer "
        "over model.parameters() (bfloat16 gradients are accumulated and clipped in float32 here), or keep the model "
        "in float32 and train it under torch.autocast. If they belong to another module, attach a module that has them "
        "all. If they were added to the model later, call attach() again."
    )


def _shown(words: list[str]) -> str:
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + more
