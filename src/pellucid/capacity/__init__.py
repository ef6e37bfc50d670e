"""Capacity planning without the machines: memory sizes, predicted step times, and simulated replicas under load.

machines.py           the machines of a plan: the machines of a file, or this machine
layouts.py            the size of a model, and its layouts on machines
step_costs.py         seconds of a step by its contents: measured, scaled to other machines, or estimated
server_costs.py       the time that a server adds to steps
traffic.py            simulated requests and conversations
simulated_replica.py  a replica in simulated time, with the real scheduler and caches
simulate.py           the simulation of replicas behind the real router
search.py             the number of replicas for a load over a day
"""
