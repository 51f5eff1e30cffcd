"""The service: jobs that are sent, kept in a table, and run one process tree each.

What lives in the server's process needs no torch: the table (``store``), the order of jobs and their processes
(``scheduler``). Each job has a supervisor (``supervisor``), which outlives none of its children, and a runner (``runner``),
which alone imports what prunes and trains.
"""
