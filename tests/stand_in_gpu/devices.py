"""The cards that can be stood in for, by their CUdevice_attribute values."""

from typing import NamedTuple


class Card(NamedTuple):
    """A GPU's memory and those of its attributes that software asks for."""

    memory_bytes: int
    attributes: dict[int, int]
    """CUdevice_attribute -> value"""

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability, major and minor."""
        return self.attributes[75], self.attributes[76]


# Threads a block (1 to 4), blocks a grid (5 to 7), shared bytes a block (8), constant bytes (9),
# warp (10), pitch (11), registers a block (12), threads an SM (39), registers an SM (82),
# cooperative launches (95), blocks an SM (106), reserved shared bytes (111), memory pools (115).
_COMMON = {
    1: 1024, 2: 1024, 3: 1024, 4: 64, 5: 2**31 - 1, 6: 65535, 7: 65535, 8: 49152, 9: 65536, 10: 32,
    11: 2**31 - 1, 12: 65536, 39: 2048, 41: 1, 82: 65536, 95: 1, 106: 32, 111: 1024, 115: 1,
}  # fmt: skip


def _card(
    memory_gib: int, capability: tuple[int, int], num_sms: int, clock_khz: int,
    memory_clock_khz: int, bus_bits: int, l2_mib: int, shared_bytes: tuple[int, int],
) -> Card:  # fmt: skip
    """shared_bytes: that an SM has, and that a block may ask for."""
    attributes = _COMMON | {
        13: clock_khz, 16: num_sms, 36: memory_clock_khz, 37: bus_bits, 38: l2_mib << 20,
        75: capability[0], 76: capability[1], 81: shared_bytes[0], 97: shared_bytes[1],
    }  # fmt: skip
    return Card(memory_gib << 30, attributes)


CARDS = {
    "H100": _card(80, (9, 0), 132, 1_980_000, 2_619_000, 5120, 50, (233_472, 232_448)),
    "A100": _card(80, (8, 0), 108, 1_410_000, 1_215_000, 5120, 40, (167_936, 166_912)),
    "V100": _card(32, (7, 0), 80, 1_530_000, 877_000, 4096, 6, (98_304, 98_304)),
}
