"""What this processor does with small integers, as far as it changes what is computed."""

from __future__ import annotations

import functools
import platform

import torch

#: Instructions that multiply bytes and add the products in 32 bits.
_EXACT = ('avx512_vnni', 'avx_vnni', 'avx_vnni_int8', 'avx10_2', 'amx_int8')


@functools.cache
def adds_in_16_bits() -> bool:
    """Whether products of eight-bit integers are added in pairs in 16 bits, which 255 * 127 + 255 * 127 exceeds.

    x86 processors without VNNI do (`vpmaddubsw`), and what exceeds is cut off, without a word. Other architectures do not.
    """
    if platform.machine().lower() not in ('x86_64', 'amd64'):
        return False
    found = _features()
    return bool(found) and not any(name in found for name in _EXACT)


def _features() -> set[str]:
    """Return the names of what the processor can do, as Linux has them; none if they cannot be found out."""
    capabilities = getattr(torch.cpu, 'get_capabilities', None)  # of newer releases
    if capabilities is not None:
        return {name for name, value in capabilities().items() if value is True}
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as stream:
            return set(next((line for line in stream if line.startswith('flags')), '').split())
    except OSError:
        return set()
