"""What was scored, remembered for a while; what people said of it, kept for good.

1. ``records``       what an answer leaves behind, and a label that was given to an item of it.
2. ``memory``        takes answers without waiting, and writes them behind the requests.
3. ``store``         where both are kept: a file (``sqlite_file``), or Redis (``redis_store``) where
                     one is configured, so that any replica takes feedback on any answer.

``observed`` is how it travels to ``recalibration``; the routes are ``routes.feedback``.
"""
