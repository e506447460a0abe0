"""Who sees the operations that a thread calls: a compiler, a mode, a tracer, the profiler."""

from __future__ import annotations

import torch

try:
    from torch._C import _is_tracing as _tracing
    from torch._C import _len_torch_dispatch_stack as _dispatch_modes
    from torch._C import _len_torch_function_stack as _function_modes
    from torch.autograd import _profiler_enabled as _profiled  # pyright: ignore
except ImportError:  # private names, which torch may change: then nothing takes the short way

    def followed() -> bool:
        """True: it cannot be told."""
        return True

else:

    def followed() -> bool:
        """Whether somebody does; if not, what has the same values may be had in another way."""
        return bool(
            torch.compiler.is_compiling()
            or _dispatch_modes()
            or _function_modes()
            or _tracing()
            or _profiled()
        )
