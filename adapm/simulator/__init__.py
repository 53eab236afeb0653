"""Whole runs in a virtual world: real nodes, lanes and workers under a virtual clock, with faults, from a seed.

loop        an asyncio event loop whose time is virtual and whose order is the seed's
network     a transport with latency, bandwidth, stalls and losses
world       nodes and workers of one run
faults      what befalls them
workloads   what the workers do
ledger      what workers have done, and so must see
frames      what is in a frame
invariants  what must hold of one row at any moment
watch       everything under way, checked after every frame
runs        one seed, many seeds
commands    `adapm simulate`

cluster     very many nodes, without faults and checks
wires       the network between them
scale       a trainer on them, and what an access costs
costs       processor time of what is counted, and
calibration how it is measured
plot        a picture of it
scale_commands  `adapm scale`
room        whether so many nodes fit into this process
"""
