"""Calibration: text to tokens (`corpus`), tokens to statistics (`stream`), and where both wait (`placement`)."""
