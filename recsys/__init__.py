"""recsys: 64-bit fingerprints in, click probabilities out.

Multiplexed embedding tables, CTR models, training, evaluation and serving, on torch.
"""

from recsys.compiled import keep_compiled
from recsys.versions import check_versions

__version__ = "0.1.0"

check_versions()
keep_compiled()
