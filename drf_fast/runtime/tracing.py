"""Whether anything observes the operations of this thread: a compiler, mode, tracer or profiler."""

from __future__ import annotations

import torch

try:
    from torch._C import _is_tracing as _tracing
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
            or _tracing()
            or _profiled()
        )
