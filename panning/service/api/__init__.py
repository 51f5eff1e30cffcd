"""What the service answers over HTTP: requests are checked (``guard``, ``access``), routed (``jobs``, ``artefacts``,
``tokens``, ``about``) and answered, errors as problem details (``problems``).

None of it needs torch: configs are looked at by ``panning.service.checks`` in a process of its own.
"""
