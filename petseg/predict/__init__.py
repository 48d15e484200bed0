"""Prediction without torch: photos in, masks and cut-outs out."""
