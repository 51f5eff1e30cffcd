"""The service: jobs that are sent, kept in a table, and run one process tree each.

What lives in the server's process (``serve``) needs no torch: the answers over HTTP (``api``), the table (``store``), the
order of jobs and their processes (``scheduler``), their events (``streams``). Configs are looked at by a process beside it
(``checks``, ``checker``). Each job has a supervisor (``supervisor``), which outlives none of its children, and a runner
(``runner``), which alone imports what prunes and trains.
"""
