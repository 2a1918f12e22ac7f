"""The torch side: float models, calibration, entropy, freezing, fake quantisation, and lowering to the integer program."""
