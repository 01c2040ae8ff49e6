"""Whether this CPU computes products in bf16 fast enough to train with them."""

from __future__ import annotations

import torch

from features.errors import ConfigError

BF16_UNITS = ("avx512_bf16", "amx_bf16")
"""Instruction sets that multiply bf16, by the names torch has for them; without one torch emulates it, slowly."""


def require_bf16() -> None:
    """Refuses a CPU without units for bf16.

    Raises:
        ConfigError: it has none, or torch was built without the library that uses them.
    """
    capabilities = torch.cpu.get_capabilities()
    if torch.backends.mkldnn.is_available() and any(capabilities.get(unit) for unit in BF16_UNITS):
        return
    raise ConfigError(
        "this CPU has no units for products in bf16",
        field="train.autocast",
        found=capabilities.get("cpu_name") or torch.backends.cpu.get_cpu_capability(),
        expected="AVX512-BF16 or AMX, and a torch with oneDNN",
        mend="leave it out, or train on another machine",
    )
