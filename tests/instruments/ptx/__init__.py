"""GPU code executed without a GPU: the PTX of a kernel, thread by thread, in numpy.

``program`` reads the text, ``arithmetic`` says what an instruction computes, ``memory`` watches
what it reads and writes, ``machine`` runs the threads. What has no meaning there raises
NotImplementedError; what a GPU would not forgive raises ``FaultError``:

* an address outside of the tensors, or not a multiple of the access's width;
* shared memory read or overwritten by a warp after another one's access, without a barrier between;
* global memory read after another thread's store, without a barrier between, or another program's;
* a barrier, or an exchange within a warp, at which not all of its threads arrive.
"""

from ptx.machine import Counts, execute
from ptx.memory import FaultError, Memory
from ptx.program import Program

__all__ = ["Counts", "FaultError", "Memory", "Program", "execute"]
