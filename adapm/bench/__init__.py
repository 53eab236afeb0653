"""`adapm bench`: what access to rows costs, beside what it would cost without a manager.

Every benchmark measures its limit (a plain gather) or baseline (a bare ping-pong, the same loop on one node) in the
same repetition as ours, and reports ratios of figures of one repetition: on shared machines they say more than figures.

    commands    the command line              harness     repetitions, medians, spread
    report      tables for people, JSON       machine     cores, CPU time, memory of our processes
    keys        which rows a batch has        ping_pong   the bare baselines of `remote`
    local, remote, intent, idle, memory       one benchmark each
"""
