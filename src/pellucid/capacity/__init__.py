"""What machines could do, without having them: sizes, the time of steps, and a simulation of replicas under load."""
