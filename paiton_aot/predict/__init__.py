"""Predictions from a plan, before any device has run it: seconds of a boot and of a step, with what they assume."""
