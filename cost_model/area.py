"""A proxy of silicon area: multipliers, accumulators and SRAM at 45 nm. Good for comparing designs, not for planning a die.

Left out: registers, vector unit, wires, control, pads. All of it is an estimate:

- 8-bit multiplier 282 um2, 32-bit adder 137 um2: the areas beside Horowitz's energies (ISSCC 2014) in Sze et al., Proc. IEEE 2017,
  quoted from memory: we found no copy to check them. Aladdin's library (cost_model/width_price.py), which we did check, has 397 um2
  (6350 / 16) and 278. A narrower multiplier is scaled by the product of its widths, an accumulator by its width.
- SRAM 0.5 um2 a bit: Intel's 45 nm cell of 0.346 um2 (Mistry et al., IEDM 2007; the cell also in Real World Technologies, "Intel's 45nm
  Surprise", 2007), taken as seven tenths of an array of banks, which is our choice.
"""

from cost_model.hardware import Array

MULTIPLIER_UM2_PER_BIT2, ADDER_UM2_PER_BIT, SRAM_UM2_PER_BIT = 282 / 64, 137 / 32, 0.5


def area_mm2(compute: Array, sram_bytes: int):
    """Of the array and its SRAM; an array of areas if the sides are arrays."""
    multiplier = MULTIPLIER_UM2_PER_BIT2 * compute.left_bits * compute.right_bits
    element = multiplier + ADDER_UM2_PER_BIT * compute.accumulator_bits
    return (compute.macs_per_cycle * element + 8 * sram_bytes * SRAM_UM2_PER_BIT) / 1e6
