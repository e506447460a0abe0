"""Our interpretation of DRF's algorithm, the default of ``SoftBall``, ``train`` and all recipes.

docs/results.md has the rule by which it was chosen. Nothing here imports torch.
"""

from typing import Literal

Form = Literal["prox", "shrink", "excess", "udr"]

FORM: Form = "prox"
LAMBDA_EVERY = 1  # lambda changes at every step, as line 14 of Algorithm 1 has it
LAMBDA0 = 1.0
