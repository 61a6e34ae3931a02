"""Optimizers, parameter groups and schedules that are functions of the step."""
