"""GPU code executed without a GPU: the PTX of a kernel, thread by thread, in numpy.

``program`` parses the text, ``arithmetic`` defines what an instruction computes, ``memory`` checks
its accesses, ``machine`` runs the threads. An instruction that is not known raises
NotImplementedError; undefined behaviour on a GPU raises ``FaultError``:

* an address outside of the tensors, or not a multiple of the access's width;
* shared memory read or overwritten by a warp after another one's access, without a barrier between;
* global memory read after another thread's store, without a barrier between, or another program's;
* a barrier, or an exchange within a warp, that not all of its threads reach.
"""

from ptx.machine import Counts, execute
from ptx.memory import FaultError, Memory
from ptx.program import Program

__all__ = ["Counts", "FaultError", "Memory", "Program", "execute"]
