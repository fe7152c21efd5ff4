"""Targets: from a program to launches, plans and a memory plan. One package per kind of device."""
