"""Quantisers, their calibration and the repair of what they lose."""
