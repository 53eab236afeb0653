"""`adapm compare`: one script under several techniques, transports, links and sizes, taking turns, and what came of it.

    commands    the command line              variants    what is compared, and in which order
    running     one run of the script         records     runs in a file, from which a comparison goes on
    results     medians, ratios, verdicts     tables      for terminals, Markdown and CSV
    page        the HTML page                 plots       its pictures; needs matplotlib

Whatever a script measures comes through `adapm.report` (adapm/reporting.py); of one that reports nothing there are
times, and what nodes and workers counted.
"""
