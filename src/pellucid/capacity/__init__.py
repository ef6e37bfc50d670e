"""Capacity planning without the machines: memory sizes, predicted step times, and simulated replicas under load."""
