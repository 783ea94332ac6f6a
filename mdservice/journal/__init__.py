"""The journal: what came from the feeds, as it came, for replay, export and tests.

``format`` describes the files, ``recorder`` writes them beside the running service, ``reader``
reads them.
"""
