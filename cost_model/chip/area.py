"""A proxy of silicon area: multipliers, accumulators and SRAM at 40 to 45 nm. Good for comparing designs, not for planning a die.

Left out: vector unit, wires, control, pads. All of it is an estimate:

- multipliers quadratic in their width, adders and registers (of both operands and the sum) linear, from the 32-bit units of Aladdin's
  40 nm library (Shao et al., ISCA 2014: cmos40_aladdin_mul_area 6.35e3 um2, _add_area 2.78e2, _reg_area 5.98 a bit).
- SRAM 0.5 um2 a bit: Intel's 45 nm cell of 0.346 um2 (Mistry et al., IEDM 2007; the cell also in Real World Technologies, "Intel's 45nm
  Surprise", 2007), taken as seven tenths of an array of banks, which is our choice.
"""

from cost_model.chip.hardware import Array, Hardware
from eamsim.constraints import LEVEL_BITS

LEVELS = 16
MULTIPLY_UM2, ADD_UM2, REGISTER_UM2, SRAM_UM2 = 6350 / 32**2, 278 / 32, 5.98, 0.5
"""Per bit x bit, and per bit."""


def element_um2(compute: Array, accumulator_bits: int):
    """Of one multiplier, its adder, and the registers of both operands and the sum."""
    operands = REGISTER_UM2 * (compute.left_bits + compute.right_bits)
    return MULTIPLY_UM2 * compute.left_bits * compute.right_bits + operands + (ADD_UM2 + REGISTER_UM2) * accumulator_bits


def area_mm2(hardware: Hardware):
    """Of the array, the levels at its port, its SRAM and accumulators; an array of areas if the sides are arrays."""
    compute, memories = hardware.compute, hardware.memories
    assert isinstance(compute, Array)
    tables_um2 = compute.rows * LEVELS * LEVEL_BITS * REGISTER_UM2 if compute.looks_up_levels else 0
    memory_bits = 8 * (memories.sram.bytes + (memories.accumulators.bytes if memories.accumulators else 0))
    return (compute.macs_per_cycle * element_um2(compute, compute.accumulator_bits) + tables_um2 + memory_bits * SRAM_UM2) / 1e6
