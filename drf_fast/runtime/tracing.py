"""Whether anything observes or transforms the operations of this thread.

That is a compiler, a mode, a tracer, a profiler, torch.func, forward-mode differentiation. The
private names of torch that tell are here, with what holds where torch has changed them.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

try:
    from torch._C import _are_functorch_transforms_active as are_transforms_active
except ImportError:

    def are_transforms_active() -> bool:
        """False: this torch does not say whether vmap, grad or jvp is around the call."""
        return False


try:
    from torch._C import _is_tracing as is_jit_tracing
except ImportError:

    def is_jit_tracing() -> bool:
        """False: this torch does not say whether torch.jit.trace records."""
        return False


try:
    from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor
except ImportError:

    def is_batched(tensor: torch.Tensor) -> bool:
        """False: this torch does not say whether vmap made it."""
        return False

else:

    def is_batched(tensor: torch.Tensor) -> bool:
        """Whether it stands for several tensors, inside vmap or ``is_grads_batched``.

        Never in compiled code, where Dynamo cannot ask.
        """
        if torch.compiler.is_compiling():
            return False
        return is_batchedtensor(tensor) or is_legacy_batchedtensor(tensor)


def is_forward_mode_active() -> bool:
    """Whether the call is inside ``forward_ad.dual_level``."""
    return getattr(forward_ad, "_current_level", -1) >= 0


try:
    from torch._C import _len_torch_dispatch_stack as _dispatch_modes
    from torch._C import _len_torch_function_stack as _function_modes
    from torch.autograd import _profiler_enabled as _profiled  # pyright: ignore
except ImportError:  # private names, which torch may change: then nothing bypasses the dispatcher

    def is_traced_or_profiled() -> bool:
        """True: this torch does not say."""
        return True

else:

    def is_traced_or_profiled() -> bool:
        """Whether calls are recorded; where not, they may bypass torch's dispatcher or use a cache.

        What is recorded: compilation, torch function and dispatch modes, ``torch.jit.trace``, the
        profiler.
        """
        return bool(
            torch.compiler.is_compiling()
            or _dispatch_modes()
            or _function_modes()
            or is_jit_tracing()
            or _profiled()
        )


try:
    from torch._C import _get_dispatch_mode as _mode_of_kind
    from torch._C import _len_torch_dispatch_stack as _dispatch_modes
    from torch._C import _TorchDispatchModeKey as _Kind
except ImportError:

    def are_values_unknown() -> bool:
        """False: this torch does not say whether tensors are fake."""
        return False

else:

    def are_values_unknown() -> bool:
        """Whether tensors are fake, or stand for any others in a graph that make_fx records."""
        # The number of modes first: it is 0 nearly always, and the fastest to ask for.
        return _dispatch_modes() > 0 and any(
            _mode_of_kind(kind) is not None for kind in (_Kind.FAKE, _Kind.PROXY)
        )
