"""Devices, data parallel processes, run folders, atomic writes, signals and the console."""
