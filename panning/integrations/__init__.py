"""Callbacks for trainers of others: ``panning.integrations.huggingface`` and ``panning.integrations.lightning``.

Each needs its library (``pip install 'panning[integrations]'``) and is imported by its own name.
"""
