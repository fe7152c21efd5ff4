"""Drivers: what a device must do to run a bundle (base.py), one module per kind of device."""
