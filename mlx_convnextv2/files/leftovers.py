"""What training leaves in a checkpoint: wrappers in the weights' names, averaged copies, an optimizer's state."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..messages import short, some

_AVERAGED = ("ema", "ema_model", "model_ema", "ema_net", "averaged_model", "swa_model")
_PLAIN = ("module", "_orig_mod", "model", "online_model", "net", "network", "student", "teacher")
WRAPPERS = re.compile(rf"^(({'|'.join((*_AVERAGED, *_PLAIN))})\.)+")

# First words that no tensor of a known scheme begins with, and the counters of norms and averages.
_LEFTOVERS = re.compile(
    r"(optimizer|optimizers|optimizer_states?|optim|lr_schedulers?|scheduler|scaler|grad_scaler|loss_scaler|amp_scaler"
    r"|state|param_groups|rng_state|callbacks|loops|criterion|loss_fn)\."
    r"|(epoch|step|global_step|iteration|n_averaged|num_updates|decay|initted|rng_state)$"
    r"|(.*\.)?num_batches_tracked$"
)
# PyTorch's AveragedModel keeps this beside "module.".
_AVERAGE_COUNTER = "n_averaged"


def is_leftover(key: str) -> bool:
    """Whether a tensor belongs to training, judged by its name alone."""
    return _LEFTOVERS.match(WRAPPERS.sub("", key)) is not None


def unwrap(keys: Collection[str], leftovers: Collection[str] = ()) -> tuple[dict[str, str], list[str]]:
    """The key of each weight by its name without wrappers, and the keys of copies that an averaged copy replaces.

    Args:
        keys: the weights' keys.
        leftovers: the other keys of the file, which may show that a copy is averaged.

    Raises:
        ValueError: there are two copies of the weights, and it is unclear which is the average, or the average is
            incomplete.
    """
    prefixes = {key: (WRAPPERS.match(key) or [""])[0] for key in keys}
    names: dict[str, list[str]] = {}
    for key, prefix in prefixes.items():
        names.setdefault(key[len(prefix) :], []).append(key)
    copies = {prefixes[key] for doubled in names.values() if len(doubled) > 1 for key in doubled}
    if not copies:
        return {name: key for name, (key,) in names.items()}, []
    averaged = [prefix for prefix in copies if _is_averaged(prefix, leftovers)]
    if len(averaged) != 1:
        raise ValueError(
            f"it holds weights twice, under {' and '.join(map(short, sorted(copies)))}, and which to "
            "take is not clear: save one copy alone, such as the EMA's"
        )
    superseded = copies - {averaged[0]}
    lost = [name for name, doubled in names.items() if all(prefixes[key] in superseded for key in doubled)]
    if lost:
        raise ValueError(
            f"the averaged copy, under {short(averaged[0])}, lacks {len(lost)} of the weights, such as "
            f"{some(lost[:1])}: save one whole copy alone"
        )
    kept = {key[len(prefix) :]: key for key, prefix in prefixes.items() if prefix not in superseded}
    return kept, [key for key, prefix in prefixes.items() if prefix in superseded]


def _is_averaged(prefix: str, leftovers: Collection[str]) -> bool:
    words = prefix.split(".")
    counted = prefix.endswith("module.") and prefix.removesuffix("module.") + _AVERAGE_COUNTER in leftovers
    return counted or any(word in _AVERAGED for word in words)
