"""Devices, processes, a run's folder and atomic writes."""
